"""The best checkpoint of a run that continues."""

from types import SimpleNamespace

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from metaseg.training.best_checkpoint import BestCheckpoint


def test_a_run_that_was_moved_knows_its_best(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    there = BestCheckpoint(old, "loss")
    there.best_model_score = there.kth_value = torch.tensor(0.25)
    there.best_model_path = there.kth_best_model_path = str(old / "best.ckpt")
    there.best_k_models = {there.best_model_path: there.best_model_score}
    state = there.state_dict()
    alone = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=lambda decision: decision))

    for folder in (old, new):
        here = BestCheckpoint(folder, "loss")
        here.load_state_dict(state)
        assert here.best_model_score == 0.25
        assert here.best_k_models == {str(folder / "best.ckpt"): 0.25}
        assert here.best_model_path == here.kth_best_model_path == str(folder / "best.ckpt")
        assert not here.check_monitor_top_k(alone, torch.tensor(0.3))
        assert here.check_monitor_top_k(alone, torch.tensor(0.2))


def test_its_state_is_found_in_checkpoints_of_earlier_versions(tmp_path):
    assert BestCheckpoint(tmp_path, "loss").state_key == ModelCheckpoint(tmp_path, monitor="loss").state_key
