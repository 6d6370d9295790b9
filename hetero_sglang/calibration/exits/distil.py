"""From windows of text to branches: read them, train, calibrate, check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.calibration.exits.collect import collect, records
from hetero_sglang.calibration.exits.initial import frequent_words, initial
from hetero_sglang.calibration.exits.measured import Part, measured
from hetero_sglang.calibration.exits.options import Options, Size
from hetero_sglang.calibration.exits.report import figures
from hetero_sglang.calibration.exits.states import States
from hetero_sglang.calibration.exits.teacher import Teacher
from hetero_sglang.calibration.exits.training import Training
from hetero_sglang.calibration.exits.windows import Window, Windows
from hetero_sglang.calibration.exits.work_folder import WorkFolder
from hetero_sglang.calibration.text_options import bar
from hetero_sglang.exits.branch import Branch
from hetero_sglang.exits.calibrate import Weights, calibrate
from hetero_sglang.exits.exits import Exits

SAVE_SECONDS = 20.0  # of training that a kill may cost


def distil(
    checkpoint: Checkpoint,
    size: Size,
    options: Options,
    windows: Windows,
    folder: WorkFolder,
    about: Mapping[str, Any],
    quiet: bool,
) -> Exits:
    """Branches of the checkpoint with provenance `about`; what a run before left in the folder is gone on with.

    Raises HeteroError where text or states do not fit, and where numbers are not finite."""
    teacher, dtype = Teacher.of(checkpoint), checkpoint.model.dtype
    trained, calibrated, checked = _parts([windows.train, windows.calibrate, windows.check])
    with States(folder.states, len(options.layers) + 1, size.hidden, dtype) as states:
        with bar(sum(len(window.tokens) for window in windows.all), "reading", quiet) as progress:
            collect(checkpoint, teacher, windows.all, options.layers, states, progress.update)
        words = _words(options, teacher, states, windows)
        found = _train(options, teacher, states, trained.count, words, folder, quiet)
        branches = tuple(branch.to(checkpoint.device, dtype) for branch in found)
        shown = [
            measured(branches, teacher, states, part, options.confidence, size.layers) for part in (calibrated, checked)
        ]
    rows = calibrate(shown[0], weights=weights(checkpoint, branches))
    provenance = {**about, **options.about, "tokens_trained": trained.count, **figures(shown[0], shown[1], rows)}
    return Exits(size.layers, size.hidden, size.vocabulary, options.confidence, branches, rows, provenance).to(
        "cpu", dtype
    )


def weights(checkpoint: Checkpoint, branches: Sequence[Branch]) -> Weights:
    """What asking these branches reads of bytes, and the model's own head, in layers of the model."""
    layers = list(checkpoint.model.base_model.layers.parameters())
    layer = _nbytes(layers) / checkpoint.model.config.num_hidden_layers
    head = _nbytes([checkpoint.model.get_output_embeddings().weight]) / layer
    own = [_nbytes([each for each in (b.down, b.up, b.head) if each is not None]) / layer for b in branches]
    asked = (mine + head * (branch.kind == "adapter") for mine, branch in zip(own, branches, strict=True))
    return Weights(tuple(asked), head)


def _nbytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(each.nbytes for each in tensors)


def _train(
    options: Options,
    teacher: Teacher,
    states: States,
    count: int,
    words: torch.Tensor,
    folder: WorkFolder,
    quiet: bool,
) -> Sequence[Branch]:
    training = Training(initial(options, teacher, states, count, words), teacher, options, words)
    training.load(folder.training)
    with bar(options.steps, "training", quiet) as progress:
        progress.update(training.step)

        def advance(loss: float) -> None:
            progress.set_postfix_str(f", loss {loss:.3f}", refresh=False)
            progress.update(1)

        training.run(states, count, advance, folder.training, SAVE_SECONDS)
    training.save(folder.training)  # should what follows be interrupted
    return training.branches


def _words(options: Options, teacher: Teacher, states: States, windows: Windows) -> torch.Tensor:
    """[V'] that branches know: all, or those that the training text has or the model chooses on it most often."""
    vocabulary, device = len(teacher.head), teacher.head.device
    if options.kind != "frequent":
        return torch.arange(vocabulary, device=device)
    counts = torch.bincount(states.first_choices(records(windows.train)), minlength=vocabulary)
    counts += torch.bincount(
        torch.tensor([token for window in windows.train for token in window.tokens]), minlength=vocabulary
    )
    return frequent_words(counts, options.words).to(device)


def _parts(parts: Sequence[Sequence[Window]]) -> list[Part]:
    """Records of each part's windows, one part after the other."""
    found = list[Part]()
    for windows in parts:
        found.append(Part(found[-1].end if found else 0, tuple(records([window]) for window in windows)))
    return found
