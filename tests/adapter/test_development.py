"""Switches of measurements and tests: refused in one sentence where they are not allowed, or mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetero_sglang import plugin
from hetero_sglang.config import development
from hetero_sglang.errors import HeteroError


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (development.ALLOWED, development.FETCH_RATE, development.WAIT):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("name", "value"), [(development.FETCH_RATE, "0.5"), (development.WAIT, "1")])
@pytest.mark.parametrize("allowed", [None, "", "0"])
def test_a_production_server_refuses_them(
    name: str, value: str, allowed: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    if allowed is not None:
        monkeypatch.setenv(development.ALLOWED, allowed)
    assert development.fetch_rate() is None and not development.waits()
    with pytest.raises(SystemExit) as ending:
        plugin.register()
    said = capsys.readouterr().err
    assert ending.value.code == 2 and said.count("\n") == 1
    assert name in said and f"{development.ALLOWED}=1" in said


@pytest.mark.parametrize("rate", ["half", "-0.1", "1.5", "nan", "inf", "/nowhere/rate", "1e999", "\ud800"])
def test_a_rate_that_is_no_share_is_refused(rate: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(development.ALLOWED, "1")
    monkeypatch.setenv(development.FETCH_RATE, rate.encode("utf-8", "replace").decode())
    with pytest.raises(HeteroError, match="share from 0 to 1"):
        development.check()
    file = tmp_path / "rate"
    file.write_bytes(rate.encode("utf-8", "surrogatepass"))
    monkeypatch.setenv(development.FETCH_RATE, str(file))
    with pytest.raises(HeteroError, match="share from 0 to 1"):
        development.check()


@pytest.mark.parametrize("name", [development.ALLOWED, development.WAIT])
def test_a_switch_that_is_neither_on_nor_off_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(development.ALLOWED, "1")
    monkeypatch.setenv(name, "yes")
    with pytest.raises(HeteroError, match=f"{name} is 'yes'"):
        development.check()


def test_what_is_allowed_is_honoured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    development.check()
    assert development.fetch_rate() is None and not development.waits()
    monkeypatch.setenv(development.ALLOWED, "1")
    monkeypatch.setenv(development.WAIT, "1")
    monkeypatch.setenv(development.FETCH_RATE, "0.25")
    development.check()
    assert development.fetch_rate() == 0.25 and development.waits()
    file = tmp_path / "rate"
    file.write_text("0")
    monkeypatch.setenv(development.FETCH_RATE, str(file))
    for text, rate in (("0", 0.0), ("0.75\n", 0.75), ("", None), ("1", 1.0)):  # while the server runs
        file.write_text(text)
        assert development.fetch_rate() == rate
