"""Grades that are defined, and the measure of calibration. The recipes' own packages are not needed."""

import torch

from recipes.encoder import calibration
from recipes.grades import accuracy, ordinal, ordinal_cuts, targets


def test_a_calibrated_probability_has_no_error_and_a_shifted_one_has_its_shift() -> None:
    p = torch.linspace(0.01, 0.69, 500, dtype=torch.float64)
    assert calibration(p, p) == 0
    assert abs(calibration(p + 0.3, p) - 0.3) < 1e-9


def test_grades_are_probabilities_that_move_up_with_the_balance() -> None:
    balance = torch.linspace(-6, 6, 25, dtype=torch.float64)
    logits = torch.stack([-balance / 2, torch.zeros(25), balance / 2], -1)
    grades = ordinal(logits, torch.tensor([-3.0, -1.0, 1.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(grades.sum(-1), torch.ones(25, dtype=torch.float64))
    assert grades.min() >= 0
    mean = (grades * torch.arange(1, 6)).sum(-1)
    assert (mean.diff() > 0).all()
    assert grades[0].argmax() == 0
    assert grades[12].argmax() == 2
    assert grades[-1].argmax() == 4


def test_cuts_are_quintiles_with_the_classes_made_level() -> None:
    # Nine negative tweets for each positive and neutral one; x is −1, 0 and 1 for the classes.
    labels = targets(["negative"] * 900 + ["neutral"] * 100 + ["positive"] * 100)
    logits = torch.stack([-labels[:, 2] + labels[:, 0], torch.zeros(1100), labels[:, 2] - labels[:, 0]], -1) / 2
    assert ordinal_cuts(logits, labels).tolist() == [-1, 0, 0, 1]


def test_accuracy_and_log_loss_of_class_frequencies() -> None:
    truth = targets(["negative"] * 3 + ["positive"])
    found = accuracy(truth.mean(0).log().expand(4, -1).clamp_min(-50), truth)
    assert found["accuracy"] == 0.75
    assert abs(found["log-loss"] - 0.5623351446) < 1e-9
