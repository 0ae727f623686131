"""The norm of all gradients, those of cached rows included."""

import pytest
import torch

from cachedlrm import clip_grad_norm_
from support.cached_collections import Model, PlainTables, assert_rows_travelled, batches, loss_of, make_collection


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_norm_is_that_of_a_model_with_dense_tables(accumulate):
    """Gradients of rows are summed by row on both sides, in another order."""
    plain = Model(PlainTables("sgd"))
    with make_collection(accumulate=accumulate, cache_rows=350) as collection:
        model = Model(collection)
        steps = [batches()[first : first + accumulate] for first in range(0, 12, accumulate)]
        for group in steps:
            for batch in group:
                loss_of(model, batch).backward()
                loss_of(plain, batch).backward()
            for weight in plain.embeddings.weights.values():
                weight.grad = weight.grad.to_dense()
            weights = [*plain.parameters(), *plain.embeddings.weights.values()]
            expected = torch.nn.utils.clip_grad_norm_(weights, 0.02)
            torch.testing.assert_close(clip_grad_norm_(model, 0.02), expected, rtol=1e-5, atol=0)
            collection.step()
            with torch.no_grad():
                for weight in plain.embeddings.weights.values():
                    weight.sub_(0.05 * weight.grad)
                    weight.grad = None
            for one in (model, plain):
                torch.optim.SGD(one.parameters(), lr=0.05).step()
                one.layers.zero_grad()
        for name, weight in plain.embeddings.weights.items():
            torch.testing.assert_close(collection.weight(name), weight.detach(), rtol=0, atol=1e-6)
        assert_rows_travelled(collection)


def test_gradients_below_the_norm_stay_and_what_is_not_finite_can_be_an_error():
    with make_collection() as collection:
        model = Model(collection)
        loss_of(model, batches()[0]).backward()
        before = [leaf.grad.clone() for leaf in collection.leaves()]
        clip_grad_norm_(model, 1e9)
        assert all(torch.equal(leaf.grad, grad) for leaf, grad in zip(collection.leaves(), before, strict=True))
        collection.leaves()[0].grad[0] = torch.inf
        with pytest.raises(RuntimeError, match="non-finite"):
            clip_grad_norm_(model, 1.0, error_if_nonfinite=True)
        collection.zero_grad()
