"""What outlives the process: durable forms of the protocols that policies and executors keep their state in."""
