"""Full-size teachers with random weights: made in their own dtype, and with outputs that mean something to a timer."""

import subprocess

import pytest
import torch

from quantsr.teachers.mgldvsr.checkpoints import random_mgldvsr
from quantsr.teachers.micro import MICRO, MICRO_VIDEO
from quantsr.teachers.osediff import random_osediff
from tests.conftest import ROOT

TEACHERS = {"osediff": (random_osediff, MICRO, (2,)), "mgldvsr": (random_mgldvsr, MICRO_VIDEO, (2, 3))}
EACH = pytest.mark.parametrize("name", TEACHERS)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_part_gives_finite_values_of_a_sane_scale(name, dtype):
    build, config, batch = TEACHERS[name]
    teacher = build(0, **config, dtype=str(dtype).removeprefix("torch."))
    assert all(tensor.dtype == dtype and not tensor.is_meta for tensor in teacher.state_dict().values())
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    lq = torch.rand(*batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    latent = teacher.encode(lq)
    epsilon = teacher.denoise(latent)
    decoded = teacher.decode(teacher.clean(latent, epsilon), lq)
    for values in (latent, epsilon, decoded, teacher(lq)):
        assert values.dtype == torch.float32 and values.isfinite().all()
        assert 0.01 < values.std() < 10


@EACH
def test_weights_follow_from_the_seed(name):
    build, config, _ = TEACHERS[name]
    first, again, other = (build(seed, **config).state_dict() for seed in (0, 0, 1))
    weights = [key for key, tensor in first.items() if tensor.ndim > 1]
    assert all(torch.equal(first[key], again[key]) and not torch.equal(first[key], other[key]) for key in weights)


BUILD = """
import resource
import torch
from {module} import {function}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
teacher = {function}(dtype="bfloat16", **{arguments})
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(grown / sum(t.nbytes for t in teacher.state_dict().values()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "function", "arguments"),
    [
        ("quantsr.teachers.osediff", "random_osediff", {}),
        ("quantsr.teachers.mgldvsr.checkpoints", "random_mgldvsr", {"flow": None}),
    ],
    ids=TEACHERS,
)
def test_full_size_takes_no_second_copy(python, module, function, arguments):
    code = BUILD.format(module=module, function=function, arguments=arguments)
    done = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.1
