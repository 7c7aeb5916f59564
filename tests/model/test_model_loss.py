import pytest
import torch
import torch.nn.functional as F

from model import loss, native
from model.loss import linear_cross_entropy_sum

POSITIONS, DIM, VOCABULARY = 10, 3, 7


def draw(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, POSITIONS // 2, DIM, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, DIM, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (2, POSITIONS // 2), generator=generator)
    targets[0, 1] = targets[1, 4] = -100
    return x, weight, targets


@pytest.fixture(params=[1, 3, POSITIONS, 100], ids=lambda rows: f"chunks-of-{rows}")
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one position, uneven ones, and one chunk for all, in float64."""
    monkeypatch.setitem(loss._CHUNK_BYTES, "cpu", request.param * VOCABULARY * 8)


@pytest.mark.usefixtures("chunk_rows")
def test_loss_and_gradients_equal_those_of_the_whole_logits() -> None:
    x, weight, targets = draw()
    expected = F.cross_entropy((x @ weight.T).flatten(0, 1), targets.flatten(), reduction="sum")
    expected_grads = torch.autograd.grad(0.3 * expected, (x, weight))
    computed = linear_cross_entropy_sum(x, weight, targets)
    torch.testing.assert_close(computed, expected)
    torch.testing.assert_close(torch.autograd.grad(0.3 * computed, (x, weight)), expected_grads)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy_sum(x, weight, targets), expected)
    assert torch.autograd.gradcheck(lambda x, weight: linear_cross_entropy_sum(x, weight, targets), (x, weight))


def test_bfloat16_sums_the_loss_and_the_chunks_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, targets = draw(torch.bfloat16)
    whole = linear_cross_entropy_sum(x, weight, targets)
    (expected,) = torch.autograd.grad(whole, weight)
    monkeypatch.setitem(loss._CHUNK_BYTES, "cpu", 1)
    chunked = linear_cross_entropy_sum(x, weight, targets)
    (computed,) = torch.autograd.grad(chunked, weight)
    assert chunked.dtype == torch.float32 and computed.dtype == torch.bfloat16
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(computed, expected, atol=0.05, rtol=0.02)


def test_nothing_valid_is_zero_and_has_no_gradient() -> None:
    x, weight, targets = draw()
    computed = linear_cross_entropy_sum(x, weight, torch.full_like(targets, -100))
    computed.backward()
    assert computed == 0 and not x.grad.any() and not weight.grad.any()


def test_an_unlikely_target_costs_its_full_nats() -> None:
    x = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[500.0], [0.0]])  # exp(-500) is 0 in float32, log_softmax is not
    assert linear_cross_entropy_sum(x, weight, torch.tensor([1])).item() == pytest.approx(500.0)


def test_a_second_backward_gives_the_same() -> None:
    x, weight, targets = draw()
    computed = linear_cross_entropy_sum(x, weight, targets)
    first = torch.autograd.grad(computed, (x, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(computed, (x, weight)), first, atol=0, rtol=0)


def test_the_form_for_compilers_says_the_same() -> None:
    x, weight, targets = draw()
    logits = (x @ weight.T).flatten(0, 1).detach()
    eager, fusible = (
        each(logits.clone(), targets.flatten(), torch.float64, True)
        for each in (loss._loss_and_gradient, loss._loss_and_gradient_in_one_pass)
    )
    torch.testing.assert_close(fusible, eager)


@pytest.mark.skipif(native.library() is None, reason=native.missing())
@pytest.mark.parametrize("words", [VOCABULARY, 64, 1000])
def test_in_place_it_is_the_loss_and_gradient_of_float64(words: int) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(9, words, generator=generator, dtype=torch.float64) * 20
    targets = torch.randint(words, (9,), generator=generator)
    targets[3] = loss.IGNORE
    for dtype, atol in ((torch.float32, 1e-5), (torch.bfloat16, 2.0**-8)):
        exact = loss._loss_and_gradient(logits.to(dtype).double(), targets, torch.float64, True)
        found = loss._loss_and_gradient(logits.to(dtype), targets, torch.float32, True)
        alone, _ = loss._loss_and_gradient(logits.to(dtype), targets, torch.float32, False)
        assert found[1].dtype == dtype and torch.equal(alone, found[0])
        torch.testing.assert_close(found[0].double(), exact[0], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(found[1].double(), exact[1], atol=atol, rtol=0)
        assert not found[1][3].any()
        with pytest.raises(IndexError, match="neither a word of the vocabulary nor left out"):
            loss._loss_and_gradient(logits.to(dtype), targets.where(targets != loss.IGNORE, words), torch.float32, True)
