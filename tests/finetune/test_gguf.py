"""A GGUF file that is cut or damaged is refused in a sentence with its name, at once; a sound one loads."""

from __future__ import annotations

import json
import random
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from blockzo import digest
from blockzo.finetune.errors import UserError
from blockzo.finetune.models.gguf_header import check_gguf
from blockzo.finetune.models.loading import load

Tiny = Callable[[str], Path]
SECONDS = 60
"""Far more than a load of so small a file takes: beyond it a test has hung."""


@pytest.fixture(scope="module")
def sound(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A llama of one layer with random weights and the tokenizer of the tests' models."""
    told = json.loads((tiny("llama") / "tokenizer.json").read_text())["model"]
    tokens = [*sorted(told["vocab"], key=told["vocab"].__getitem__), "<|endoftext|>"]
    path = tmp_path_factory.mktemp("gguf") / "sound.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_context_length, 64),
        (writer.add_embedding_length, 32),
        (writer.add_block_count, 1),
        (writer.add_feed_forward_length, 64),
        (writer.add_head_count, 2),
        (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_dimension_count, 16),
        (writer.add_vocab_size, len(tokens)),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_token_list, tokens),
        (writer.add_token_types, [1] * len(tokens)),
        (writer.add_token_merges, [" ".join(m) if isinstance(m, list) else m for m in told["merges"]]),
        (writer.add_bos_token_id, 0),
        (writer.add_eos_token_id, 2),
        (writer.add_pad_token_id, 1),
        (writer.add_unk_token_id, 3),
    ):
        add(value)  # type: ignore[operator]
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,), "output": (len(tokens), 32)}
    shapes |= {f"blk.0.{name}": (32,) for name in ("attn_norm", "ffn_norm")}
    shapes |= {f"blk.0.attn_{name}": (32, 32) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
    draw = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (draw.standard_normal(shape) / 8).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def ring(*_: Any) -> None:
        # not an Exception, so that nobody makes a sentence of it
        raise KeyboardInterrupt(f"still loading after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def placed(folder: Path, data: bytes) -> str:
    (folder / "model.gguf").write_bytes(data)
    return str(folder / "model.gguf")


def refusal(folder: Path, data: bytes) -> str:
    """What a damaged file is refused with."""
    path = placed(folder, data)
    with pytest.raises(UserError) as caught:
        load(path, "float32")
    assert path in str(caught.value) and "Traceback" not in str(caught.value)
    return str(caught.value)


def after(data: bytes, text: bytes, skipped: int, new: bytes) -> bytes:
    """`data` with other bytes so far after a text."""
    at = data.index(text) + len(text) + skipped
    return data[:at] + new + data[at + len(new) :]


def test_a_sound_file_loads_to_the_same_bits(sound: bytes, tmp_path: Path) -> None:
    one, other = load(placed(tmp_path, sound), "float32"), load(placed(tmp_path, sound), "float32")
    assert one.kind == "causal" and digest(one.model) == digest(other.model)


@pytest.mark.parametrize("where", [0, 3, 4, 10, 24, 0.02, 0.04, 0.5, 0.98])
def test_a_cut_file_is_refused(sound: bytes, tmp_path: Path, where: float) -> None:
    kept = where if isinstance(where, int) else int(where * len(sound))
    assert "not a whole GGUF file" in refusal(tmp_path, sound[:kept])


def test_another_file_is_refused(sound: bytes, tmp_path: Path) -> None:
    for magic in (b"GGML", b"\0\0\0\0", b"FUGG"):
        assert "does not begin as a GGUF file does" in refusal(tmp_path, magic + sound[4:])
    assert "version is 7" in refusal(tmp_path, sound[:4] + struct.pack("<I", 7) + sound[8:])


LARGE = struct.pack("<Q", 1 << 60)


@pytest.mark.parametrize(
    ("text", "skipped", "new", "reason"),
    [
        (b"GGUF", 4, LARGE, "beyond its end"),
        (b"GGUF", 12, LARGE, "beyond its end"),
        # the library reads on past the end of the file for each of these
        (b"tokenizer.ggml.token_type", 8, LARGE, "an array"),
        (b"tokenizer.ggml.tokens", 8, LARGE, "beyond its end"),
        (b"tokenizer.ggml.model", 4, LARGE, "a string"),
        (b"general.architecture", 0, struct.pack("<I", 99), "a value of type 99"),
        (b"llama.block_count", 4, struct.pack("<I", 1 << 31), "block_count is 2147483648; its tensors allow 0 to 12"),
        (b"llama.block_coun", 0, b"x", "no setting llama.block_count"),
        (b"llama.embedding_length", 4, struct.pack("<I", 1 << 30), "embedding_length is 1073741824"),
        (b"llama.embedding_lengt", 0, b"x", "no setting llama.embedding_length"),
        (b"llama.vocab_size", 4, struct.pack("<I", 1 << 31), "vocab_size"),
        (b"blk.0.ffn_gate.weight", 4, LARGE, "its tensors end at byte"),
        (b"blk.0.ffn_gate.weight", 24, LARGE, "its tensors end at byte"),
        (b"blk.0.ffn_gate.weight", 0, struct.pack("<I", 1 << 30), "dimensions"),
        (b"blk.0.ffn_gat", 0, b"x", "model.gguf: the weights"),
    ],
)  # fmt: skip
def test_numbers_that_no_file_has_are_refused(
    sound: bytes, tmp_path: Path, text: bytes, skipped: int, new: bytes, reason: str
) -> None:
    assert reason in refusal(tmp_path, after(sound, text, skipped, new))


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 60))])
def test_random_bytes_in_the_header(sound: bytes, tmp_path: Path, seed: int) -> None:
    """It loads (in a name that nothing reads), or is refused in a sentence."""
    chance = random.Random(seed)
    start = gguf.GGUFReader(placed(tmp_path, sound)).data_offset
    refused = 0
    for _ in range(12):
        data = bytearray(sound)
        for _ in range(chance.randrange(1, 9)):
            data[chance.randrange(4, start)] = chance.randrange(256)
        path = placed(tmp_path, bytes(data))
        try:
            load(path, "float32")
        except UserError as error:
            refused += 1
            assert path in str(error)
    assert refused > 6


def test_every_cut_of_the_header_is_found_by_the_check(sound: bytes, tmp_path: Path) -> None:
    check_gguf(Path(placed(tmp_path, sound)))
    for kept in range(0, 3000, 7):
        path = placed(tmp_path, sound[:kept])
        with pytest.raises(ValueError, match="begin as|beyond its end|mmap"):
            check_gguf(Path(path))
