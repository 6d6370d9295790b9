"""Whatever lies at the path of a profile, reading it ends at once: in a profile, or in one sentence that names it."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from profile_builders import index_of, profile_of

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.files import PROFILE_NAME, dumps, find_profile, fingerprint, load_profile
from hetero_sglang.profile.json_file import MOST_BYTES, MOST_DIGITS, MOST_PARTS
from hetero_sglang.profile.measurements import Measurements
from hetero_sglang.profile.ratio import topk_share
from hetero_sglang.profile.reference import encode_reference
from hetero_sglang.profile.schema import encode

LONGEST_SENTENCE = 500  # characters beside the path
same_folder = {"suppress_health_check": [HealthCheck.function_scoped_fixture]}
PAGEMAP = Path("/proc/self/pagemap")  # claims to be empty, goes on for half a terabyte


def measured(layers: int, heads: int, steps: int) -> Measurements:
    rng = np.random.default_rng(4)
    pairs = rng.random((layers, heads, heads))
    alone = rng.random((layers, heads))
    return Measurements(alone, alone / 2, pairs, pairs / 2, rng.random((layers, heads, steps)))


def objects() -> dict[str, dict[str, Any]]:
    """A profile in our form, with a key index, and in the reference's form."""
    texts = [{"tokens": 9, "topk": 3}]
    profile = profile_of("Psaa", "VVaP", provenance={"texts": texts}, measurements=measured(2, 4, 3))
    indexed = profile_of("Psaa", "VVaP", head_dim=4, index=index_of(2, 4, 4, ((4, 4),)))
    return {"ours": encode(profile), "indexed": encode(indexed), "reference": encode_reference(profile)}


def refusal(path: Path) -> str | None:
    """What the refusal says, None where it is a profile. Anything but one HeteroError of one sentence fails."""
    try:
        profile = load_profile(path)
    except HeteroError as error:
        said = str(error)
        assert str(path) in said and "\n" not in said and said.endswith(".")
        assert len(said) - len(str(path)) < LONGEST_SENTENCE
        return said
    assert 0 <= profile.floor <= 1
    return None


def written(folder: Path, content: bytes | str) -> Path:
    path = folder / "odd.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


ODD = (
    st.none() | st.booleans() | st.text(max_size=4) | st.integers(-(10**5000), 10**5000)
    | st.integers(-3, 9) | st.floats() | st.sampled_from([True, 10**400, -(10**400), 10**19, 1e308, 5e-324, "\ud800"])
    | st.lists(st.integers(-3, 9) | st.text(max_size=2), max_size=5)
    | st.dictionaries(st.text(max_size=3) | st.just("9" * 5000), st.integers(0, 5), max_size=3)
)  # fmt: skip


def text_of(value: Any) -> str:
    """JSON, of whole numbers of any length too."""
    big: list[str] = []

    def mark(item: Any) -> Any:
        if type(item) is int and abs(item) >= 10**4000:
            digits, rest = [], abs(item)
            while rest:
                rest, part = divmod(rest, 10**1000)
                digits.append(f"{part:01000d}")
            big.append("-" * (item < 0) + "".join(reversed(digits)).lstrip("0"))
            return f"big {len(big) - 1}"
        if isinstance(item, dict):
            return {key: mark(inner) for key, inner in item.items()}
        return [mark(inner) for inner in item] if isinstance(item, list) else item

    return re.sub(r'"big (\d+)"', lambda match: big[int(match[1])], json.dumps(mark(value)))


@settings(max_examples=400, **same_folder)
@given(st.sampled_from(["ours", "indexed", "reference"]), st.data())
def test_a_profile_with_anything_anywhere_is_read_or_refused_in_a_sentence(tmp_path, form, data):
    found = copy.deepcopy(objects()[form])
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from([path for path in places(found) if path]))
        inner = found
        for step in place[:-1]:
            inner = inner[step]
        how = data.draw(st.sampled_from(["put", "drop", "twice"]))
        if how == "put":
            inner[place[-1]] = data.draw(ODD)
        elif how == "drop":
            del inner[place[-1]]
        elif isinstance(inner, list):
            inner.append(inner[place[-1]])
    if refusal(written(tmp_path, text_of(found))) is None:
        try:
            topk_share(load_profile(tmp_path / "odd.json").provenance)
        except HeteroError as error:
            assert "`provenance.texts`" in str(error)


@settings(max_examples=200, **same_folder)
@given(st.sampled_from(["ours", "indexed", "reference"]), st.data())
def test_changed_bytes_are_read_or_refused_in_a_sentence(tmp_path, form, data):
    content = bytearray(dumps(objects()[form]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    refusal(written(tmp_path, bytes(content)))


WEIGHT = '"weights": [[0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]]'


def with_weight(text: str) -> str:
    whole = json.dumps(objects()["ours"])
    assert WEIGHT in whole
    return whole.replace(WEIGHT, WEIGHT.replace("0.0, 1.0", f"0.0, {text}", 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1" * 5000, f"a whole number of 5000 digits; {MOST_DIGITS} are the most"),
        ("1" + "0" * 400, "a whole number of 401 digits"),
        ("-" + "1" * 10_000, "a whole number of 10001 digits"),
        ("1e400", "holds 1e400, which is too large"),
        ("-1e400", "too large"),
        ("NaN", "holds NaN"),
        ("Infinity", "holds Infinity"),
        ("true", "weight True; it must be a number"),
        ('"1"', "weight '1'; it must be a number"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
    ],
)
def test_a_number_that_is_none_is_refused(tmp_path, text, words):
    assert refusal(written(tmp_path, with_weight("1.0"))) is None
    assert words in (refusal(written(tmp_path, with_weight(text))) or "")


@pytest.mark.parametrize(
    ("form", "place", "value"),
    [
        ("ours", ("version",), True),
        ("ours", ("version",), 1.0),
        ("ours", ("pivots", 0, 0), False),
        ("ours", ("measurements", "stability", 0, 0), True),
        ("ours", ("measurements", "stability", 0, 0), "0.5"),
        ("ours", ("measurements", "stability"), "0.5"),
        ("reference", ("meta", "type_map", "anchor"), True),
        ("reference", ("classification_matrix", 0, 2), True),
        ("reference", ("allocation_matrix", 0, 1), True),
        ("reference", ("leader_member_relations", 0, "0", 0), True),
        ("reference", ("meta", "counts", "satellite"), True),
    ],
)
def test_true_and_text_are_no_numbers(tmp_path, form, place, value):
    data = objects()[form]
    assert refusal(written(tmp_path, json.dumps(data))) is None
    inner = data
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    assert refusal(written(tmp_path, json.dumps(data))) is not None


def test_a_name_given_twice_is_refused(tmp_path):
    text = json.dumps(objects()["ours"])
    assert "gives 'version' twice" in refusal(written(tmp_path, text[:-1] + ', "version": 1}'))


@pytest.mark.parametrize("size", [MOST_BYTES + 1, 200 << 20, 1 << 40])
def test_a_file_beyond_the_bound_is_refused_unread(tmp_path, size):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(size)  # a hole: larger than memory, nothing on the disk
    began = time.process_time()
    assert f"holds {size} bytes" in refusal(path)
    assert time.process_time() - began < 0.1


LONG = f"1.5e-{'3' * 40},"


@pytest.mark.parametrize("unit", [" ", "[],", '"x",', "1,", LONG, '{"a":1},', "[", "9"])
def test_a_file_as_large_as_may_be_takes_a_moment(tmp_path, unit):
    path = written(tmp_path, ("[" + unit * (MOST_BYTES // len(unit)))[:MOST_BYTES])
    began = time.process_time()
    said = refusal(path)
    assert said is not None and ("parts" in said) == (unit not in (" ", "9", LONG))
    assert time.process_time() - began < 3  # seconds of the processor
    path.unlink()  # pytest would keep it


def test_the_largest_model_that_is_served_has_room(tmp_path):
    """80 layers of 64 KV heads, no groups: Qwen1.5-72B."""
    whole = profile_of(*["P" + "s" * 63] * 80, measurements=measured(80, 64, 64))
    text = dumps(encode(whole))
    assert len(text) < 0.6 * MOST_BYTES and sum(map(text.count, "[{,")) < 0.6 * MOST_PARTS
    assert refusal(written(tmp_path, text)) is None


def test_a_key_index_of_1600_heads_has_room(tmp_path):
    """40 layers of 40 KV heads of 128 dimensions: Llama-2-13B."""
    index = index_of(40, 40, 128, ((8, 4), (24, 2)))
    whole = profile_of(*["P" + "s" * 39] * 40, head_dim=128, measurements=measured(40, 40, 64), index=index)
    text = dumps(encode(whole))
    assert len(text) < 0.6 * MOST_BYTES
    began = time.process_time()
    assert refusal(written(tmp_path, text)) is None
    assert time.process_time() - began < 3  # seconds of the processor


def test_what_is_no_regular_file_is_refused_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path, words in (
        (tmp_path / "pipe", "is no regular file"),
        (Path("/dev/zero"), "is no regular file"),
        (tmp_path / "folder", "is a directory"),
        (tmp_path / "absent", "does not exist"),
        (tmp_path / "circle", "cannot be read"),
        (tmp_path / ("n" * 300), "cannot be read: File name too long"),
    ):
        assert words in refusal(path)
        with pytest.raises(HeteroError, match=words):
            find_profile(tmp_path, str(path))
    with pytest.raises(HeteroError, match="embedded null byte"):
        load_profile("a\0b")


@pytest.mark.skipif(not os.access(PAGEMAP, os.R_OK), reason=f"{PAGEMAP} is not to be read here")
def test_a_file_that_is_longer_than_it_says_is_refused():
    assert "does not end within" in refusal(PAGEMAP)


def test_a_directory_in_the_place_of_the_models_own_profile_is_told(tmp_path):
    (tmp_path / PROFILE_NAME).mkdir()
    assert f"{PROFILE_NAME} is a directory" in refusal(find_profile(tmp_path))


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[1]", b'{"model_type": ' + b"1" * 5000 + b"}", b"\xff"])
def test_an_odd_configuration_is_refused_by_name(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(HeteroError, match="config.json"):
        fingerprint(tmp_path)


@pytest.mark.parametrize("header", [b"[]", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"])
def test_an_odd_weight_header_is_refused_by_name(tmp_path, recall_model, header):
    shutil.copy(recall_model / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(HeteroError, match="model.safetensors is not a whole safetensors file"):
        fingerprint(tmp_path)


def test_others_files_may_hold_what_ours_may_not(tmp_path):
    (tmp_path / "config.json").write_text('{"a": Infinity, "a": 1000000000000000019884624838656}')
    assert fingerprint(tmp_path).startswith("sha256:")


def test_a_reference_file_of_an_odd_name_is_read(tmp_path):
    path = tmp_path / "Head_topk1024_th0.5.1_sim0..5_step64.json"
    path.write_text(json.dumps(objects()["reference"]))
    assert refusal(path) is None
