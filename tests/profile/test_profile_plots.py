"""The pictures exist, are pictures, and show what the profile holds."""

from __future__ import annotations

import numpy as np
import pytest
from profile_builders import profile_of

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.measurements import Measurements

pytest.importorskip("matplotlib")

from hetero_sglang.calibration.plots import plot_all, plot_overlap, plot_roles, plot_similarity, plot_stability


def measured(layers: int, heads: int) -> Measurements:
    rng = np.random.default_rng(3)
    pairs = rng.random((layers, heads, heads))
    stability = rng.random((layers, heads))
    return Measurements(stability, stability / 10, pairs, pairs, rng.random((layers, heads, 6)))


@pytest.mark.parametrize(("layers", "heads"), [(2, 4), (9, 2), (1, 1), (3, 20)])
def test_four_pictures_are_written_for_any_shape(tmp_path, layers, heads):
    profile = profile_of(*["V" * heads] * layers, measurements=measured(layers, heads))
    paths = plot_all(profile, tmp_path / "new" / "folder")
    assert [path.stem for path in paths] == ["roles", "stability", "similarity", "overlap"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_every_head_is_lettered_and_roles_are_named():
    axes = plot_roles(profile_of("Psaa", "VVaa")).axes[0]
    assert [text.get_text() for text in axes.texts] == list("PsaaVVaa")
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == [
        "pivot (resident)",
        "volatile (resident)",
        "satellite (compressed)",
        "anchor (compressed)",
    ]


def test_maps_hold_the_measurements():
    numbers = measured(2, 3)
    np.testing.assert_array_equal(plot_stability(numbers).axes[0].images[0].get_array(), numbers.stability)
    shown = [axes.images[0].get_array() for axes in plot_similarity(numbers).axes if axes.images]
    np.testing.assert_array_equal(np.stack(shown[:2]), numbers.similarity)


def test_overlap_draws_the_chosen_heads():
    numbers = measured(1, 4)
    lines = plot_overlap(profile_of("Psaa", measurements=numbers), numbers, [(0, 1), (0, 3)]).axes[0].lines
    np.testing.assert_array_equal(np.stack([line.get_ydata() for line in lines]), numbers.overlap[0, [1, 3]])


def test_a_profile_without_measurements_gives_its_roles_only(tmp_path):
    assert [path.stem for path in plot_all(profile_of("Ps"), tmp_path)] == ["roles"]
    with pytest.raises(HeteroError, match="holds no measurements"):
        plot_all(profile_of("Ps"), tmp_path, ["0.1"])


@pytest.mark.parametrize("name", ["0", "0.2", "1.0", "a.b", "-1.0", "0.1.1"])
def test_heads_that_are_not_in_the_model_are_refused(tmp_path, name):
    with pytest.raises(HeteroError, match="is no head of this model; write LAYER.HEAD with layers 0 to 0"):
        plot_all(profile_of("Ps", measurements=measured(1, 2)), tmp_path, [name])


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HeteroError, match="cannot be written"):
        plot_all(profile_of("Ps"), tmp_path / "file" / "folder")
