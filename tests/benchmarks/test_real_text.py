"""Real texts: who is calibrated on what, what is forced and recorded in the server, and the arithmetic of it."""

from __future__ import annotations

import json
import pickle
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.launch import RECALL
from benchmarks.real.arithmetic import SUMS, divergence, rows_per_head, summarize
from benchmarks.real.forcing import COLUMNS, Forced, _ends_within_prompt, processor
from benchmarks.real.measure import score
from benchmarks.real.setting import FULL, parse_settings
from benchmarks.real.show import plot, table
from benchmarks.real.sources import KINDS, Source
from benchmarks.real.tasks import CHAT, FACTS, MADE, TURNS, talk, tasks
from benchmarks.real.texts import CALIBRATION, HELD_OUT, Text, chosen, compose, distinct, side
from benchmarks.real_text import kv_heads, main
from hetero_sglang.calibration.samples import MODULES, TOPICS
from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang.version import release

VOCABULARY = 50


class Letters:
    """A tokenizer of one token per character."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        assert add_generation_prompt and not tokenize
        return "".join(f"<{each['role']}>{each['content']}" for each in messages) + "<assistant>"


def words(seed: int, count: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join("".join(rng.choice(list("abcdefgh"), 9)) for _ in range(count))


# texts


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_calibrated_on_is_never_scored(kind: str) -> None:
    sources = list(KINDS[kind]())
    calibration, held_out = (chosen(kind, which, sources) for which in (CALIBRATION, HELD_OUT))
    assert calibration and held_out
    assert not {source.name for source in calibration} & {source.name for source in held_out}
    assert not {source.text for source in calibration} & {source.text for source in held_out}
    assert chosen(kind, HELD_OUT, reversed(sources)) == held_out


def test_a_document_stays_on_its_side_when_others_come() -> None:
    sources = [Source(f"document {n}", words(n, 40)) for n in range(60)]
    few, all_of_them = chosen("code", HELD_OUT, sources[:30]), chosen("code", HELD_OUT, sources)
    assert set(few) == {source for source in all_of_them if source in sources[:30]}
    assert {side("code", source.name) for source in sources} == {CALIBRATION, HELD_OUT}


def test_repeated_documents_are_left_out_however_they_are_wrapped() -> None:
    text = words(1, 80)
    copied = Source("b", text.replace(" ", "\n").upper() + " of ours")
    assert [source.name for source in distinct([copied, Source("c", words(2, 80)), Source("a", text)])] == ["a", "c"]


def test_texts_have_their_length_and_share_no_document() -> None:
    documents = [Source(f"{n}", words(n, 100)) for n in range(6)] + [Source("long", words(9, 1000))]
    made = compose("code", documents, Letters(), 1500, 3)
    assert [len(text.ids) for text in made] == [1500] * 3
    assert made[0].names == ("long",) and made[0].text.startswith(documents[-1].text[:1500])
    names = [name for text in made for name in text.names]
    assert len(set(names)) == len(names)
    assert made[1].told["sha256"] != made[2].told["sha256"]
    with pytest.raises(HeteroError, match="enough for 4 of 1500 tokens, not 9"):
        compose("code", documents, Letters(), 1500, 9)


# arithmetic


def test_divergence_is_that_of_torch() -> None:
    torch.manual_seed(0)
    wanted, own = torch.randn(2, VOCABULARY).log_softmax(-1)
    expected = torch.nn.functional.kl_div(own, wanted, log_target=True, reduction="sum")
    assert divergence(wanted, own) == pytest.approx(float(expected), rel=1e-5)
    assert divergence(wanted, wanted) == 0
    wanted[3] = own[3] = -torch.inf  # a padded vocabulary
    assert np.isfinite(divergence(wanted, own))


def test_means_are_over_texts_and_the_error_is_that_of_paired_differences() -> None:
    each = {**dict.fromkeys(SUMS, 5), "same_first": 0.5, "kl": 0.1, "kl_prefill": 0.0, "seconds": 2.0}
    summary = summarize([{**each, "nll": 2.1, "nll_full": 2.0}, {**each, "nll": 3.3, "nll_full": 3.0}])
    assert summary["nll"] == pytest.approx(2.7)
    assert summary["nll_difference"] == pytest.approx(0.2)
    assert summary["nll_difference_error"] == pytest.approx(0.1)
    assert (summary["texts"], summary["steps"]) == (2, 10)
    assert summarize([{**each, "nll": 2.1, "nll_full": 2.0}])["nll_difference_error"] is None


def test_rows_are_per_token_and_head() -> None:
    assert rows_per_head([{"fetched_rows": 30}, {"fetched_rows": 90}], 10, 4) == 3
    assert rows_per_head([{"fetched_rows": None}], 10, 4) is None


# forcing


@dataclass(frozen=True)
class Extent:
    end: int


@dataclass
class Request:
    """What the processor looks at of SGLang's request."""

    output_ids: list[int] = field(default_factory=list)
    full_untruncated_fill_ids: list[int] = field(default_factory=lambda: [0] * 8)
    retraction_count: int = 0

    def __post_init__(self) -> None:
        self.extend_to(8)

    def extend_to(self, end: int) -> None:
        """As the versions of SGLang say it."""
        self.extend_range, self.extend_end = Extent(end), end


def serve(
    tmp_path: Path,
    logits: torch.Tensor,
    forced: list[int],
    lag: int,
    chunks: int = 0,
    retract: int | None = None,
    **more,
) -> list[int]:
    """What is sampled of `logits`, whose tokens are known to the request `lag` steps late."""
    request, sampled, known = Request(), [], 0
    params = {"forced": forced, "record": str(tmp_path / "record.npy"), "__req__": request, **more}
    call = pickle.loads(bytes.fromhex(json.loads(processor())["callable"]))
    for end in range(1, chunks + 1):
        request.extend_to(end)
        free = call()(logits[:1].clone(), [params])
        assert torch.equal(free, logits[:1])
    request.extend_to(8)
    steps = len(forced) + lag  # with overlap, one more than there are tokens
    at = 0
    while at < steps:
        if at == retract:
            retract, request.retraction_count, at = None, 1, known  # what is under way is lost
            sampled = sampled[:known]
        request.output_ids = sampled[:known]
        row = call()(logits[min(at, len(forced) - 1)][None].clone(), [params])
        sampled.append(int(row.argmax()))
        at += 1
        known = max(0, at - lag)
    return sampled[: len(forced)]


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("chunks", [0, 2])
def test_the_true_tokens_are_sampled_and_scored_before(lag: int, chunks: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    logits, forced = torch.randn(6, VOCABULARY), [4, 7, 4, 0, 49, 7]
    distribution = tmp_path / "full.npy"
    assert serve(tmp_path, logits, forced, lag, chunks, distribution=str(distribution)) == forced
    own = logits.log_softmax(-1)
    scores = dict(zip(COLUMNS, np.load(tmp_path / "record.npy").T, strict=True))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(forced), reduction="none")
    assert scores["nll"] == pytest.approx(expected.numpy(), rel=1e-5)
    assert scores["first"].tolist() == logits.argmax(-1).tolist()
    assert scores["decoded"].tolist() == [0, 1, 1, 1, 1, 1]
    assert np.load(distribution) == pytest.approx(own.numpy(), rel=1e-5)
    other = torch.randn(6, VOCABULARY)
    assert serve(tmp_path, other, forced, lag, chunks, against=str(distribution)) == forced
    kl = np.load(tmp_path / "record.npy")[:, COLUMNS.index("kl")]
    wanted = [divergence(mine, theirs) for mine, theirs in zip(own, other.log_softmax(-1), strict=True)]
    assert kl == pytest.approx(wanted, rel=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full.npy", "record.npy"]


@pytest.mark.parametrize("lag", [0, 1])
def test_a_retracted_request_goes_on_where_it_was(lag: int, tmp_path: Path) -> None:
    torch.manual_seed(2)
    logits, forced = torch.randn(6, VOCABULARY), [4, 7, 5, 0, 49, 8]
    assert serve(tmp_path, logits, forced, lag, retract=3) == forced
    decoded = np.load(tmp_path / "record.npy")[:, COLUMNS.index("decoded")]
    assert decoded.tolist() == ([0, 1, 0, 1, 1, 1] if lag else [0, 1, 1, 0, 1, 1])


def test_a_request_that_is_out_of_step_is_not_recorded(tmp_path: Path) -> None:
    logits = torch.randn(6, VOCABULARY)
    serve(tmp_path, logits, [1, 2, 3, 4, 5, 6], lag=2)
    assert not (tmp_path / "record.npy").exists()


def test_sglang_has_what_the_processor_looks_at() -> None:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
    from sglang.srt.sampling.sampling_params import SamplingParams

    asked = SamplingParams(custom_params={"forced": [1]})
    request = Req("r", "", array("q", range(8)), asked, custom_logit_processor=processor())
    assert request.sampling_params.custom_params["__req__"].rid == "r"  # itself, or a proxy
    assert (request.retraction_count, list(request.output_ids)) == (0, [])
    request.init_next_round_input()
    assert not _ends_within_prompt(request)
    for end, within in ((5, True), (8, False)):
        if release() == "0.5.17":
            request.set_extend_range(0, end)
        else:
            request.extend_end = end
        assert _ends_within_prompt(request) == within
    assert isinstance(CustomLogitProcessor.from_str(processor()), Forced)


def test_other_requests_of_a_batch_are_left_alone() -> None:
    logits = torch.randn(2, VOCABULARY)
    assert torch.equal(Forced()(logits.clone(), [None, {"other": 1}]), logits)


# scores


def test_only_decode_steps_count() -> None:
    full = np.array([[9.0, 0, 3, 0], [1, 0, 3, 1], [2, 0, 4, 1], [3, 0, 5, 1]])
    own = np.array([[9.5, 0.5, 8, 0], [1.5, 0.1, 3, 1], [9, 9, 9, 0], [3.5, 0.3, 8, 1]])
    text = Text("code", ("a",), "", (0, 0, 8, 3, 4, 5), 2)
    made = score(own, full, text)
    assert made["decoded"] == made["steps"] == 2  # without the first, and one that was prefilled again
    assert (made["right"], made["right_full"], made["whole"], made["whole_full"]) == (1, 2, False, True)
    assert (made["nll"], made["nll_full"], made["same_first"]) == (2.5, 2.0, 0.5)
    assert made["kl"] == pytest.approx(0.2)
    assert (made["nll_prefill"], made["kl_prefill"]) == (9.5, 0.5)
    made = score(own, full, replace(text, counts=(True, True, True, False)))
    assert (made["decoded"], made["steps"], made["right"], made["whole"]) == (2, 1, 1, True)
    with pytest.raises(HeteroError, match="No decode step"):
        score(own[:1], full[:1], replace(text, ids=text.ids[:3]))


# settings


def test_settings_are_policy_ratio_and_flags() -> None:
    asked = ["snapkv@0.375", "heterocache@0.15:--hetero-window 32 --hetero-reassign", "full", "full:--page-size 16"]
    settings = parse_settings([*asked, "snapkv@0.375"])
    assert settings[0] == FULL and [setting.label for setting in settings] == ["full", asked[0], asked[1], asked[3]]
    assert settings[2].flags == {
        "kv_policy": "heterocache",
        "hetero_keep_ratio": 0.15,
        "hetero_window": "32",
        "hetero_reassign": True,
    }
    assert settings[3].flags == {"kv_policy": "full", "page_size": "16"}


def test_a_profile_is_for_policies_that_read_one() -> None:
    words = ["heterocache@0.5", "heterocache@0.5:--hetero-profile other", "snapkv@0.5", "full"]
    profiles = [setting.flags.get("hetero_profile") for setting in parse_settings(words, "p.json")]
    assert profiles == [None, "p.json", "other", None]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("h2o@0.5", "'h2o' is not one of full, heterocache"),
        ("heterocache", "with its keep ratio"),
        ("full@0.5", "write full, or another policy"),
        ("snapkv@half", "write a fraction"),
        ("snapkv@1.5", "at most 1"),
        ("snapkv@", "write a fraction"),
        ("snapkv@0.5:32", "follows no --flag"),
    ],
)
def test_what_is_no_setting_is_one_sentence(word: str, said: str) -> None:
    with pytest.raises(HeteroError, match=said):
        parse_settings([word])


# tasks


def counted(text: Text) -> str:
    """Of what is forced, what counts; a space where it does not."""
    forced = text.ids[text.prompt :]
    assert text.counts is not None and len(text.counts) == len(forced)
    return "".join(chr(i) if counts else " " for i, counts in zip(forced, text.counts, strict=True))


def test_facts_stand_once_in_the_prompt_and_are_what_counts() -> None:
    made = tasks(["needle", "needles"], Letters(), 4000, 3)
    assert [text.kind for text in made] == ["needle"] * 3 + ["needles"] * 3
    assert [text.names for text in made[:3]] == [text.names for text in made[3:]]  # of the same documents
    for text in made:
        prompt = Letters().decode(text.ids[: text.prompt])
        codes = counted(text).split()
        assert len(set(codes)) == len(codes) == (1 if text.kind == "needle" else FACTS)
        assert all(prompt.count(code) == 1 for code in codes)
        assert 3500 < text.prompt < 4600 and prompt.startswith("<user>") and prompt.endswith("<assistant>")
    depths = [Letters().decode(text.ids[: text.prompt]).index(counted(text).strip()) / 4000 for text in made[:3]]
    assert depths == sorted(depths) and depths[2] - depths[0] > 0.25
    assert made == tasks(["needle", "needles"], Letters(), 4000, 3)


def test_a_paragraph_is_copied_with_one_word_changed() -> None:
    (text,) = tasks(["copy"], Letters(), 8000, 1)
    prompt, answer = (Letters().decode(part) for part in (text.ids[: text.prompt], text.ids[text.prompt :]))
    old = prompt.rsplit('wherever it says "', 1)[1].split('"')[0]
    assert " ".join(prompt.split()).count(answer.replace("lantern", old)) == 1
    assert "lantern" in answer and len(counted(text).split()) == len(answer.split()) - 8


def test_a_conversation_is_made_of_the_servers_own_answers() -> None:
    class Answering:
        def continued(self, ids: list[int], most: int) -> list[int]:
            return [ord(c) for c in f"answer {len(ids)}."]

    (chat,) = tasks([CHAT], Letters(), 2000, 1)
    turns = talk(Answering(), Letters(), chat)  # type: ignore[arg-type]
    assert [turn.text for turn in turns] == list(TURNS) and {turn.names for turn in turns} == {chat.names}
    for before, after in zip(turns, turns[1:], strict=False):
        assert after.ids[: len(before.ids)] == before.ids and after.counts is None
    assert set(MADE) | {CHAT} == {"needle", "needles", "copy", "chat"}


# the command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps 0: pass 1 or more."),
        (["--policies", "h2o@1"], "is not one of"),
        (["--kinds", "poem", "--model", str(RECALL)], "'poem' is not one of book"),
        ([], "no checkpoint folder"),
    ],
)
def test_bad_arguments_end_in_a_sentence(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--model", str(tmp_path), "--no-plot", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_heads_are_counted_from_the_config(tmp_path: Path) -> None:
    config: dict[str, Any] = {"num_hidden_layers": 30, "num_attention_heads": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert kv_heads(tmp_path) == 270
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 3}))
    assert kv_heads(tmp_path) == 90


def test_rows_are_shown_as_table_and_plot(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("benchmarks.quality.plots").load_pyplot()
    each = {**dict.fromkeys(SUMS, 5), "same_first": 0.5, "kl": 0.1, "kl_prefill": 0.0, "seconds": 2.0}
    each |= {"nll": 2.1, "nll_full": 2.0, "right": 4, "whole": False}
    more = {"rows_per_token_and_head": 1.5, "measured_ratio": None}
    rows = [
        {"policy": policy, "kind": kind, **summarize([each] * count), **more}
        for policy in ("full", "snapkv@0.5")
        for kind, count in (("code", 1), ("all", 2))
    ]
    assert (
        "| snapkv@0.5 | all | 2 | 2.1000 | +0.1000 ± 0.0000 | 0.10000 | 50.0% | 8 of 10 | 0 of 10 | 1.50 |  | 4 |"
        in table(rows)
    )
    assert plot(pyplot, rows, tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_no_text_that_calibration_brings_along_is_scored() -> None:
    for kind, names in (("reference", TOPICS), ("code", MODULES)):
        assert {side(kind, name) for name in names} == {CALIBRATION}
