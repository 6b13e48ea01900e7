"""Writes a llama-architecture GGUF of under a megabyte: own vocabulary, seeded weights, the same bytes each time.

Random weights alone answer with broken UTF-8 that never ends. Five dimensions of the hidden state are therefore set by
hand, and neither the random part of the blocks reads them nor does it write them:

    CONSTANT   the same positive number for every token, so a column of the output matrix is a bias per token: words are
               likely, bytes never come, a turn ends after a dozen words, constrained JSON closes soon
    LOUDNESS   how much the attention head below listens to a token: zero but for two markers
    MEANING    what that token says about calling a tool: yes after `<tools>`, no after `</tool_response>`
    WANT_CALL  what the head heard; the output matrix makes `<tool_call>` certain or impossible with it
    CALL_DONE  set by `</tool_call>` alone; the output matrix ends the turn with it

So the model calls a tool exactly once when tools are offered, and answers in words once it has seen a result.

    python -m tests.rig.tiny_gguf tiny.gguf
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

CONTEXT = 8192
WIDTH, INNER, LAYERS, HEADS = 64, 128, 2, 4
HEAD_WIDTH = WIDTH // HEADS
SEED = 20

CONSTANT, LOUDNESS, MEANING, WANT_CALL, CALL_DONE = range(5)
RESERVED = 5
LEVEL = 6.0
LEVEL_AT_OUTPUT = LEVEL / (1.0 + LEVEL**2 / WIDTH) ** 0.5
"""What the final RMS norm leaves of LEVEL when the other dimensions have variance one."""

NEVER = -30.0
SPACE = "\u2581"
END_OF_TURN = "<|im_end|>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
HEARD = {"<tools>": (4.0, 3.0), "</tool_response>": (7.0, -3.0)}
"""LOUDNESS and MEANING of the markers; the later marker is louder, so a result outweighs the offer."""

WORDS = """
a about all an and any are as at be been but by can come could day did do down each find first for from get give go had
has have he her here him his how if in into is it its just know like little long look made make many may more most my
new no not now of off old on one only open or other our out over part people place right said same see she side so some
take tell than that the their them then there they thing think this time to two under up us use very was water way we
well went were what when where which who will with word work would year you your river gate wheel mill stone light wind
name city number list value result plan step task answer search true false null json error north south east west
""".split()  # noqa: SIM905 (a list of this length reads worse)

CHAT_TEMPLATE = r"""
{%- set lead = messages[0].content if messages[0].role == 'system' else '' -%}
{%- if tools -%}
<|im_start|>system
{{ lead + '\n\n' if lead else '' }}# Tools
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools><|im_end|>
{% elif lead -%}
<|im_start|>system
{{ lead }}<|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' and loop.first -%}
{%- elif message.role == 'tool' -%}
<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif message.role == 'assistant' -%}
<|im_start|>assistant
{{ message.content or '' }}
{%- for call in message.tool_calls or [] -%}
{{ '<tool_call>{"name": "' + call.function.name + '", "arguments": ' -}}
{{ call.function.arguments | tojson }}{{ '}</tool_call>' }}
{%- endfor -%}
<|im_end|>
{% else -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
""".lstrip("\n")


class Kind(enum.IntEnum):
    """The token kinds of the format, by its numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    MARKER = 4
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Token:
    """One entry of the vocabulary."""

    text: str
    kind: Kind


def vocabulary() -> list[Token]:
    """All tokens in the order of their ids."""
    tokens = [Token("<unk>", Kind.UNKNOWN)]
    tokens += [Token(text, Kind.CONTROL) for text in ("<s>", "</s>", "<|im_start|>", END_OF_TURN)]
    tokens += [Token(text, Kind.MARKER) for text in (*HEARD, CALL, CALL_END)]
    tokens += [Token(f"<0x{byte:02X}>", Kind.BYTE) for byte in range(256)]
    plain = [SPACE, "\n", *map(chr, range(33, 127)), *_pieces()]
    return tokens + [Token(text, Kind.NORMAL) for text in dict.fromkeys(plain)]


def _pieces() -> Iterator[str]:
    """Every word with all its beginnings, for this tokenizer reaches a word only by joining two known pieces."""
    for word in WORDS:
        for whole in (SPACE + word, word):
            yield from (whole[:end] for end in range(2, len(whole) + 1))


def bias(token: Token) -> float:
    """How much likelier a token is than its random weights make it."""
    text, kind = token.text, token.kind
    if text == END_OF_TURN:
        return 2.5
    if kind is Kind.MARKER:
        return {CALL: -10.0, CALL_END: -3.0}.get(text, NEVER)
    if kind is not Kind.NORMAL:
        return NEVER
    if text in '"}]':
        return 3.5
    if text in {"<", ",", SPACE, "\n"}:
        return {"\n": -6.0, SPACE: -3.0}.get(text, -9.0)
    return 1.5 if text.startswith(SPACE) and len(text) > 2 else 0.0


class Weights:
    """Seeded random matrices whose reserved dimensions are set by hand."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._id = {token.text: number for number, token in enumerate(tokens)}
        self._random = np.random.default_rng(SEED)

    def tensors(self) -> Iterator[tuple[str, Matrix]]:
        """Every tensor with its name in the format."""
        yield "token_embd.weight", self._embedding()
        for layer in range(LAYERS):
            for name, matrix in self._block(listens=layer == 0).items():
                yield f"blk.{layer}.{name}.weight", matrix
        yield "output_norm.weight", np.ones(WIDTH, np.float32)
        yield "output.weight", self._output()

    def _matrix(self, rows: int, columns: int, scale: float) -> Matrix:
        return (self._random.standard_normal((rows, columns)) * scale).astype(np.float32)

    def _embedding(self) -> Matrix:
        matrix = self._matrix(len(self._tokens), WIDTH, 1.0)
        matrix[:, :RESERVED] = 0.0
        matrix[:, CONSTANT] = LEVEL
        for text, (loudness, meaning) in HEARD.items():
            matrix[self._id[text], [LOUDNESS, MEANING]] = loudness, meaning
        matrix[self._id[CALL_END], CALL_DONE] = LEVEL
        return matrix

    def _output(self) -> Matrix:
        matrix = self._matrix(len(self._tokens), WIDTH, WIDTH**-0.5)
        matrix[:, :RESERVED] = 0.0
        matrix[:, CONSTANT] = [bias(token) / LEVEL_AT_OUTPUT for token in self._tokens]
        matrix[self._id[CALL], WANT_CALL] = 6.0
        matrix[self._id[END_OF_TURN], CALL_DONE] = 14.0
        return matrix

    def _block(self, *, listens: bool) -> dict[str, Matrix]:
        block = {
            "attn_norm": np.ones(WIDTH, np.float32),
            "ffn_norm": np.ones(WIDTH, np.float32),
            **{name: self._reader(WIDTH) for name in ("attn_q", "attn_k", "attn_v")},
            **{name: self._reader(INNER) for name in ("ffn_gate", "ffn_up")},
            "attn_output": self._writer(WIDTH),
            "ffn_down": self._writer(INNER),
        }
        if listens:
            _set_listening_head(block)
        return block

    def _reader(self, rows: int) -> Matrix:
        matrix = self._matrix(rows, WIDTH, WIDTH**-0.5)
        matrix[:, :RESERVED] = 0.0
        return matrix

    def _writer(self, columns: int) -> Matrix:
        matrix = self._matrix(WIDTH, columns, 0.3 * columns**-0.5)
        matrix[:RESERVED, :] = 0.0
        return matrix


def _set_listening_head(block: dict[str, Matrix]) -> None:
    """Makes head 0 attend by LOUDNESS and carry MEANING to WANT_CALL."""
    for name in ("attn_q", "attn_k", "attn_v"):
        block[name][:HEAD_WIDTH, :] = 0.0
    block["attn_output"][:, :HEAD_WIDTH] = 0.0
    # The last rotary pair of a head turns slowest, so what it says hardly depends on the distance.
    slowest = HEAD_WIDTH - 2
    block["attn_q"][slowest, CONSTANT] = 3.0
    block["attn_k"][slowest, LOUDNESS] = 4.0
    block["attn_v"][0, MEANING] = 1.0
    block["attn_output"][WANT_CALL, 0] = 3.0


def _describe(writer: gguf.GGUFWriter) -> None:
    writer.add_name("tiny-random")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-5)


def _describe_tokens(writer: gguf.GGUFWriter, tokens: list[Token]) -> None:
    texts = [token.text for token in tokens]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores(
        [-float(number) if token.kind is Kind.NORMAL else 0.0 for number, token in enumerate(tokens)]
    )
    writer.add_token_types([int(token.kind) for token in tokens])
    writer.add_unk_token_id(texts.index("<unk>"))
    writer.add_bos_token_id(texts.index("<s>"))
    writer.add_eos_token_id(texts.index(END_OF_TURN))
    writer.add_add_bos_token(value=False)
    writer.add_add_space_prefix(value=False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_gguf(path: Path) -> None:
    """Writes the model to `path`."""
    tokens = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer)
    _describe_tokens(writer, tokens)
    for name, matrix in Weights(tokens).tensors():
        writer.add_tensor(name, matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]))
