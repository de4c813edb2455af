"""What flags and the DeepSpeed JSON settle together, and what they cannot."""

import json

import pytest

from sat_sr.training.arguments import parse_arguments
from sat_sr.training.deepspeed_config import read_deepspeed_config
from sat_sr.training.recipe import settle


def recipe_of(*flags, world_size=1, use_cuda=False, values=None):
    settings = parse_arguments(["--train-data", ";shards", "--save", "run", *flags])
    values = read_deepspeed_config(settings.deepspeed_config) if values is None else values
    return settle(settings, values, world_size, use_cuda)


def test_flags_override_the_json_and_the_cpu_gets_fp32():
    recipe = recipe_of("--lr", "0.01", "--clip-grad", "2", "--micro-batch-size", "3", "--zero-stage", "2", world_size=2)
    assert (recipe.lr, recipe.clip_grad, recipe.batch, recipe.zero_stage, recipe.precision) == (0.01, 2.0, 6, 2, "fp32")
    engine = recipe.engine
    assert engine["train_micro_batch_size_per_gpu"] == 3 and engine["gradient_clipping"] == 2.0
    assert engine["bf16"]["enabled"] is False and "optimizer" not in engine
    assert recipe_of("--precision", "bf16").engine["bf16"]["enabled"] is True


def test_a_global_batch_sets_the_accumulation_or_does_not_divide():
    assert recipe_of("--train-batch-size", "24", "--micro-batch-size", "2", world_size=3).accumulation == 4
    with pytest.raises(ValueError, match=r"train_batch_size 25 .* 3 rank\(s\) x micro batch 2.* multiple of 6"):
        recipe_of("--train-batch-size", "25", "--micro-batch-size", "2", world_size=3)
    values = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}
    assert recipe_of(world_size=4, values=values).batch == 16
    with pytest.raises(ValueError, match=r"16 .* x 2 accumulation steps: make it 12, or change the micro batch$"):
        recipe_of(world_size=3, values=values)
    flags = ["--train-batch-size", "8", "--gradient-accumulation-steps", "2", "--micro-batch-size", "2"]
    with pytest.raises(ValueError, match=r"micro batch 2 x 2 accumulation steps: make it 4, or leave .* out$"):
        recipe_of(*flags)
    assert recipe_of(*flags[:2], *flags[4:]).accumulation == 4


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"gradient_acumulation_steps": 1}', "unknown key 'gradient_acumulation_steps'; is gradient_accumulation_s"),
        ('{"zero_optimization": {"stag": 1}}', "unknown key 'stag'; is stage meant"),
        ('{"optimizer": {"params": {"learning_rate": 1}}}', "unknown key 'learning_rate'"),
        ('{"optimizer": {"parms": {"lr": 1}}}', "unknown key 'parms'; is params meant"),
        ('{"optimizer": {"type": "SGD"}}', "optimizer.type is 'SGD', AdamW is what there is"),
        ('{"optimizer": {"params": {"lr": "1e-4"}}}', "optimizer.params: lr is '1e-4': must be a number"),
        ('{"optimizer": {"params": {"betas": [0.9]}}}', r"betas is \[0.9\]: must be two numbers"),
        ('{"bf16": {"enable": true}}', "bf16: unknown key 'enable'; is enabled meant"),
        ('{"bf16": {"enabled": "true"}}', "bf16: enabled is 'true': must be true or false"),
        ('{"train_micro_batch_size_per_gpu": "auto"}', "is 'auto': must be a whole number from 1 on"),
        ('{"gradient_accumulation_steps": 0}', "gradient_accumulation_steps is 0: must be a whole number from 1 on"),
        ('{"gradient_clipping": -1}', "gradient_clipping is -1: must be a number from 0 on"),
        ('{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}', "state stays on the device.*remove"),
        ('{"bf16": {"enabled": true},}', "not valid JSON: .*line 1"),
        ('{"zero_optimization": 1}', "zero_optimization must be an object"),
        ('{"zero_optimization": {"reduce_bucket_size": "big"}}', "reduce_bucket_size is 'big': must be a whole number"),
        ('{"zero_optimization": {"overlap_comm": "yess"}}', "overlap_comm is 'yess': must be true or false"),
        (
            '{"zero_optimization": {"round_robin_gradients": true}}',
            "round_robin_gradients is True: must be false: .*wrong",
        ),
        ('{"communication_data_type": "foo"}', 'communication_data_type is .foo.: must be "fp32", "fp16" or "bf16"'),
        ('{"data_types": {"grad_accum_dtypee": "fp32"}}', "data_types: unknown key 'grad_accum_dtypee'; is grad_accum"),
        ('{"sparse_gradients": true}', "sparse_gradients is True: must be false"),
        ('{"optimizer": {"params": {"lr": 0}}}', "optimizer.params: lr is 0: must be a number above 0"),
        ('{"flops_profiler": {"enabledd": true}}', "flops_profiler: unknown key 'enabledd'; is enabled meant"),
        ('{"checkpoint": {"tag_validation": "bogus"}}', "checkpoint: tag_validation is 'bogus': must be \"Warn\""),
        ('{"checkpoint": {"parallel_write": true}}', "checkpoint: parallel_write must be an object, not bool"),
        (
            '{"checkpoint": {"load_universal": true}}',
            "load_universal is True: must be false: a run resumes on other ranks",
        ),
        (
            '{"checkpoint": {"use_node_local_storage": true}}',
            "use_node_local_storage is True: must be false: a run's ch",
        ),
        ("[]", "one JSON object"),
    ],
)
def test_a_deepspeed_json_with_a_mistake_is_named(tmp_path, text, words):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        read_deepspeed_config(path)
    assert str(path) in str(error.value)
    with pytest.raises(ValueError, match=r"nowhere.json: cannot be read"):
        read_deepspeed_config(tmp_path / "nowhere.json")


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "sat.ops.FusedEmaAdam"])
def test_a_json_of_the_release_s_kind_is_taken(tmp_path, kind):
    """With fp16 switched off and its settings left in, and SAT's name for AdamW with averages."""
    values = {"optimizer": {"type": kind, "params": {"lr": 2e-5}}, "fp16": {"enabled": False, "loss_scale": 0}}
    values["zero_optimization"] = {"stage": 1, "cpu_offload": False}
    values["sparse_gradients"] = False
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(values))
    recipe = recipe_of(values=read_deepspeed_config(path))
    assert recipe.lr == 2e-5 and "sparse_gradients" not in recipe.engine  # which DeepSpeed would refuse


def test_combinations_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match=r"--optimizer muon .* --zero-stage 0"):
        recipe_of("--optimizer", "muon")
    with pytest.raises(ValueError, match=r"--zero-stage 0 .* fp32"):
        recipe_of("--zero-stage", "0", use_cuda=True)
    with pytest.raises(ValueError, match=r"stage 3: must be 0, 1 or 2"):
        recipe_of(values={"zero_optimization": {"stage": 3}})
