"""A change of one constant in an instrument fails a test.

Each row replaces one place of the source in a copy of the project (no, or a second, such place is an error) and names
the tests that guard it. They pass on an unaltered copy and fail by assertion on the altered one: an altered copy that
cannot be imported proves nothing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Change(NamedTuple):
    """In file `path` below cosutils/, `old` becomes `new`; `guard`, a test, must notice."""

    path: str
    old: str
    new: str
    guard: str


DEFINITIONS = "test_record.py::test_the_recorded_quantities_obey_their_definitions[a14b-euler-dtype4]"
RESUME = "test_record.py::test_resume_equals_the_uninterrupted_run[a14b-euler-dtype4]"
SWEEP = "test_inject.py::test_a_sweep_from_recorded_steps_equals_full_runs[euler-a14b]"
CHANGES = {
    # the clean estimate, the schedule, the decoder
    "velocity without its sigma": Change(
        "_scheduler.py", "self.seen(x - self.sigmas[step].to(x) * v.float())", "self.seen(x - v.float())", DEFINITIONS
    ),
    "sign of the velocity": Change(
        "_scheduler.py", "self.seen(x - self.sigmas[step]", "self.seen(x + self.sigmas[step]", DEFINITIONS
    ),
    "sigma of the next step": Change(
        "_scheduler.py", "self.sigmas[step].to(x) * v", "self.sigmas[step + 1].to(x) * v", DEFINITIONS
    ),
    "estimate of a run that kept x and v": Change(
        "record.py", "x - run.sigmas[step] * run.v[step].float() for", "x - run.v[step].float() for",
        "test_inject.py::test_a_sweep_of_a_run_without_estimates_makes_them_anew",
    ),
    "formula of the shift": Change(
        "schedule.py", "shift * s / (1 + (shift - 1) * s)", "shift * s / (1 + shift * s)",
        "test_schedule.py::test_sigmas_are_the_authors[3.0-4]",
    ),
    "shift of the paper's preset": Change(
        "schedule.py", '0.875, "euler", 5.0', '0.875, "euler", 3.0',
        "test_schedule.py::test_number_of_high_noise_steps[paper-21]",
    ),
    "expert boundary of the paper's preset": Change(
        "schedule.py", '5.0, 5.0, 0.875, "euler"', '5.0, 5.0, 0.9, "euler"',
        "test_schedule.py::test_number_of_high_noise_steps[paper-21]",
    ),
    "scale of the latents that are decoded": Change(
        "record.py", "latents / (1.0 / std) + mean", "latents / std + mean",
        "test_record.py::test_decode_gives_the_pipelines_own_pixels[a14b]",
    ),
    # going on from a recorded step
    "resume off by one": Change("record.py", "set_begin_index(step)", "set_begin_index(step - 1)", RESUME),
    "estimate of the wrong step at a resume": Change(
        "record.py", "(run.x0 or _estimates(run))[step - 1]", "(run.x0 or _estimates(run))[step]", SWEEP
    ),
    # disturbances
    "renoise at the sigma of another step": Change(
        "inject.py", "sigma = hub.sigmas[step].to(new)", "sigma = hub.sigmas[step - 1].to(new)",
        "test_inject.py::test_renoise_keeps_the_estimate_at_the_right_sigma[euler]",
    ),
    "renoise without the estimate": Change(
        "inject.py", "sigma * new + (1 - sigma) * hub.x0", "sigma * new + 0 * hub.x0",
        "test_inject.py::test_renoise_keeps_the_estimate_at_the_right_sigma[euler]",
    ),
    "noise in the wrong frame": Change(
        "inject.py", "x[:, :, edit.frame] = new", "x[:, :, edit.frame - 1] = new",
        "test_inject.py::test_noise_at_one_step_and_frame",
    ),
    "the same noise at every step": Change(
        "inject.py", "SeedSequence([edit.seed, step])", "SeedSequence([edit.seed, 0])",
        "test_inject.py::test_noise_at_frame_touches_one_frame_at_every_step[euler]",
    ),
    "an edit that the solver's memory undoes": Change(
        "_scheduler.py", "if step in self.edits:", "if step in ():",
        "test_inject.py::test_unipc_does_not_undo_the_noise",
    ),
    # block states: read, exchanged, merged
    "order of frames in the tokens of a region": Change(
        "capture.py", "return inside.flatten()", "return inside.permute(2, 1, 0).flatten()",
        "test_capture.py::test_token_subsets_and_regions_select_in_f_major_order",
    ),
    "order of frames in an energy map": Change(
        "metrics.py", "norms.view(*norms.shape[:-1], *grid)",
        "norms.view(*norms.shape[:-1], *grid[::-1]).transpose(-1, -3)",
        "test_metrics.py::test_energy_is_the_norm_of_each_token_in_grid_order",
    ),
    "the other branch of the guidance": Change(
        "_branches.py", "before, self.branch = self.branch, name",
        'before, self.branch = self.branch, name.replace("un", "") if "un" in name else "un" + name',
        "test_capture.py::test_states_are_the_blocks_own_outputs_and_inputs",
    ),
    "scale of the projection": Change(
        "capture.py", "(matrix / dim**0.5)", "(matrix / dim)",
        "test_capture.py::test_projection_is_seeded_linear_and_keeps_norms_on_average",
    ),
    "a delta swap without the donor's input": Change(
        "swap.py", "(own_in[rows].float() - their_in.float())", "own_in[rows].float()",
        "test_swap.py::test_state_and_delta_write_what_they_say",
    ),
    "a swap outside the mask": Change(
        "swap.py", "torch.where(mask.to(own_out.device)", "torch.where(~mask.to(own_out.device)",
        "test_swap.py::test_a_token_mask_keeps_the_rest[flat]",
    ),
    "ensemble mean over tokens instead of seeds": Change(
        "ensemble.py", "groups.mean(1, keepdim=True).expand_as", "groups.mean(2, keepdim=True).expand_as",
        "test_ensemble.py::test_merging_does_what_the_formula_says",
    ),
    "continuation of another seed": Change(
        "ensemble.py", "list(range(keep, batch, group))", "list(range(group - 1 - keep, batch, group))",
        "test_ensemble.py::test_a_single_continuation_is_that_row_of_the_ensemble[a14b-euler-fp32]",
    ),
    "an average over something else than seeds": Change(
        "planning.py", "shared = (1 - sigma) * x0.mean(0, keepdim=True)", "shared = (1 - sigma) * x0.mean(1, keepdim=True)",
        "test_planning.py::test_averages_do_what_the_formula_says[x0]",
    ),
    "the odd one out chosen": Change(
        "planning.py", "return -distances(films)", "return distances(films)",
        "test_planning.py::test_the_odd_one_out_is_not_chosen",
    ),
    # what a disturbance costs
    "similarity for dissimilarity": Change(
        "perturb.py", "1 - linear_cka(a, b)", "linear_cka(a, b)",
        "test_perturb.py::test_dissimilarity_is_none_for_rotated_tokens_and_much_for_shuffled_ones",
    ),
    "damage per cell divided by the wrong number": Change(
        "perturb.py", "step / runs[0].frames - frame / runs[0].steps", "step / runs[0].steps - frame / runs[0].frames",
        "test_perturb.py::test_tables_and_measures_of_made_falls",
    ),
    "damage at the first step counted": Change(
        "perturb.py", "table.items() if step > 0], 0)", "table.items() if step >= 0], 0)",
        "test_perturb.py::test_tables_and_measures_of_made_falls",
    ),
    "a peak picked on the run that it is read on": Change(
        "perturb.py", "(ends.sum(0) - ends) / (len(ends) - 1)", "ends / (len(ends) - 1)",
        "test_perturb.py::test_a_peak_is_picked_on_the_other_runs",
    ),
    # behaviours along the steps
    "repairs taken for damage": Change(
        "behaviour.py", "return rows & ~before, before & ~rows", "return before & ~rows, rows & ~before",
        "test_behaviour.py::test_turns_tell_repairs_from_damage",
    ),
    "nothing shown counted as right": Change(
        "behaviour.py", "(trace.evidence.max(1) > 0)", "(trace.evidence.max(1) >= 0)",
        "test_behaviour.py::test_right_answers_lead_and_nothing_shown_is_not_right",
    ),
    "the best step for the worst": Change(
        "behaviour.py", "rows.mean(0).argmin()", "rows.mean(0).argmax()",
        "test_behaviour.py::test_the_worst_step_is_the_one_with_the_lowest_rate",
    ),
    "an onset that need not hold": Change(
        "behaviour.py", "good = np.flip(np.logical_and.accumulate(np.flip(np.asarray(share) >= level, -1), -1), -1)",
        "good = np.asarray(share) >= level", "test_behaviour.py::test_an_onset_holds_to_the_end",
    ),
    "sign of the lag across frames": Change(
        "behaviour.py", "known[-half:].mean() - known[:half].mean()", "known[:half].mean() - known[-half:].mean()",
        "test_behaviour.py::test_switches_find_the_step_of_each_frame",
    ),
    # numbers and verdicts
    "CKA without centring": Change(
        "metrics.py", "a, b = a - a.mean(0), b - b.mean(0)", "a, b = a - 0, b - 0",
        "test_metrics.py::test_cka_equals_the_gram_matrix_form",
    ),
    "power of the inverse Simpson index": Change(
        "metrics.py", "squares = (weights**2).sum(-1)", "squares = (weights**3).sum(-1)",
        "test_metrics.py::test_effective_number_counts_equal_candidates",
    ),
    "direction of the commitment step": Change(
        "metrics.py", "leader == leader[..., -1:]", "leader == leader[..., :1]",
        "test_metrics.py::test_commitment_is_the_start_of_the_last_unbroken_lead",
    ),
    "sign of a paired difference": Change(
        "metrics.py", "bootstrap_interval(first - second", "bootstrap_interval(second - first",
        "test_metrics.py::test_paired_interval_is_tighter_than_the_spread_of_samples",
    ),
    "settling against the first step": Change(
        "chain.py", "agreement(step, tiles[-1],", "agreement(step, tiles[0],",
        "test_chain.py::test_a_trace_reads_every_step",
    ),
    "a verdict supported by overlap": Change(
        "claims.py", "all(low >= start and high <= stop", "all(high >= start and low <= stop",
        "test_claims.py::test_verdicts_follow_from_the_intervals",
    ),
    "a verdict refused by overlap": Change(
        "claims.py", "any(high < start or low > stop", "any(low < start or high > stop",
        "test_claims.py::test_verdicts_follow_from_the_intervals",
    ),
    # the embedded world
    "score without its motion": Change(
        "mini/tasks/base.py", "Score(answer * motion,", "Score(answer,",
        "test_mini_tasks.py::test_controls_score_clearly_below_the_truth[maze]",
    ),
    "solved without motion": Change(
        "mini/tasks/base.py", "answer == 1 and motion >= 0.8", "answer == 1 and motion >= 0.0",
        "test_mini_tasks.py::test_controls_score_clearly_below_the_truth[maze]",
    ),
    "candidates without the blank": Change(
        "mini/tasks/base.py", "last.reshape(-1)[where] - blank", "last.reshape(-1)[where]",
        "test_mini_tasks.py::test_candidates_recover_the_weights_of_a_mixture[maze]",
    ),
    "frames that the codec drops": Change(
        "mini/codec.py", "[:, :, t - 1 :].contiguous()", "[:, :, : 1 - t].contiguous()",
        "test_mini_model.py::test_codec_is_orthonormal_and_reads_back_every_tile",
    ),
}  # fmt: skip


def copy(folder: Path) -> Path:
    """The package and its tests in a folder of their own."""
    for name in ("cosutils", "tests"):
        shutil.copytree(ROOT / name, folder / name)  # compiled files too: they belong to what is not altered
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict[str, str]]:
    """Outcomes of the guards: of all of them on an unaltered copy, and of each on the copy it guards against."""
    jobs = [(str(copy(tmp_path_factory.mktemp("plain"))), sorted({f"tests/{c.guard}" for c in CHANGES.values()}))]
    for change in CHANGES.values():
        folder = copy(tmp_path_factory.mktemp("altered"))
        path = folder / "cosutils" / change.path
        path.write_text(path.read_text().replace(change.old, change.new))
        jobs.append((str(folder), [f"tests/{change.guard}"]))
    command = [sys.executable, str(ROOT / "tests" / "forked.py"), json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return dict(zip(["unaltered", *CHANGES], json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", CHANGES)
def test_the_place_to_change_is_there_once(name):
    change = CHANGES[name]
    assert (ROOT / "cosutils" / change.path).read_text().count(change.old) == 1
    assert change.new != change.old


def test_the_guards_pass_on_an_unaltered_copy(outcomes):
    assert set(outcomes["unaltered"].values()) == {"passed"}, outcomes["unaltered"]


@pytest.mark.parametrize("name", CHANGES)
def test_the_change_is_noticed(name, outcomes):
    found = outcomes[name]
    assert "collection" not in found, "the altered copy could not be tested at all"
    assert "AssertionError" in found.values(), f"{CHANGES[name].guard} does not notice: {found}"
