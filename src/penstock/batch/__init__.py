"""Many items through one prompt, and each answer handed out as soon as its last character is there."""
