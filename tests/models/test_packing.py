"""A network arranged for inference computes what it did, and can be had back."""

import copy

import pytest
import torch
from torch import nn

from tests.architectures import CONFIGS, tiny_model
from twistlm.core.kernels.linear import PackedProduct, packable
from twistlm.models.packing import PackedLinear, for_inference

TOKENS = torch.randint(1, 200, (3, 7), generator=torch.Generator().manual_seed(0))


def hidden(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=TOKENS, use_cache=False).last_hidden_state


@pytest.mark.parametrize("architecture", CONFIGS)
def test_computes_what_the_network_does(architecture: str) -> None:
    network = tiny_model(architecture).base_model
    made = for_inference(network, torch.float32)
    torch.testing.assert_close(hidden(made), hidden(network), rtol=1e-4, atol=1e-4)
    if packable(torch.zeros(2, 2)):
        assert any(isinstance(module, PackedLinear) for module in made.modules())
        assert not any(isinstance(module, PackedLinear) for module in network.modules()), "the original was changed"


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_deep_copy_trains_and_has_the_original_parameters(architecture: str) -> None:
    network = tiny_model(architecture).base_model
    again = copy.deepcopy(for_inference(network, torch.float32))
    mine, theirs = again.state_dict(), network.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    again.requires_grad_(True)
    again(input_ids=TOKENS, use_cache=False).last_hidden_state.square().sum().backward()
    silent = [name for name, parameter in again.named_parameters() if parameter.grad is None]
    assert not silent


def test_another_precision_leaves_the_original_alone() -> None:
    network = tiny_model("llama").base_model
    made = for_inference(network, torch.bfloat16)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    difference = (hidden(made).float() - hidden(network)).abs().mean()
    assert 0 < difference < 0.05 * hidden(network).abs().mean()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_beside_a_network_that_stays_nothing_is_held_twice(architecture: str) -> None:
    network = tiny_model(architecture).base_model
    made = for_inference(network, torch.float32, stays=True)
    torch.testing.assert_close(hidden(made), hidden(network), rtol=1e-4, atol=1e-4)
    held = {parameter.data_ptr() for parameter in network.parameters()}
    assert {parameter.data_ptr() for parameter in made.parameters()} <= held
    assert not any(isinstance(module, PackedLinear) for module in made.modules())
    assert not any(parameter.requires_grad for parameter in made.parameters())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_embeddings_are_looked_up_where_they_are(architecture: str) -> None:
    network = tiny_model(architecture).base_model
    made, copied = (for_inference(network, torch.bfloat16, stays=stays) for stays in (True, False))
    assert torch.equal(hidden(made), hidden(copied))
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
    tables = [module for module in network.modules() if type(module) is nn.Embedding]
    size = sum(parameter.numel() for parameter in copied.parameters())
    assert sum(parameter.numel() for parameter in made.parameters()) == size - sum(
        each.weight.numel() for each in tables
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 40), (1, 40), (3, 5, 40)])
def test_product_equals_linear(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, bias = (torch.randn(size, generator=generator).to(dtype) for size in ((50, 40), (50,)))
    x = torch.randn(shape, generator=generator).to(dtype)
    product = PackedProduct(weight, bias)
    torch.testing.assert_close(product(x), nn.functional.linear(x, weight, bias), rtol=2e-2, atol=1e-2)
    assert torch.equal(product.weight, weight)
