"""Tables of an embedding, and the dimensions that facebookresearch/dlrm gives them."""

from cachedlrm.model.tables import Embedding, Table, mixed_dimensions


def test_names_and_shapes():
    assert Embedding(3, 10, 8).tables == (Table("emb_l.3.weight", 10, 8),)
    assert Embedding(3, 10, 8, mixed=True).tables == (Table("emb_l.3.embs.weight", 10, 8),)
    assert Embedding(3, 10, 8, collisions=4).tables == (
        Table("emb_l.3.weight_q", 3, 8),  # ids 8 and 9 have a quotient of their own
        Table("emb_l.3.weight_r", 4, 8),
    )


def test_every_id_has_its_own_pair():
    quotients, remainders = Embedding(0, 101, 8, collisions=7).tables
    pairs = {(number // 7, number % 7) for number in range(101)}
    assert len(pairs) == 101
    assert max(quotient for quotient, _ in pairs) == quotients.num_rows - 1
    assert max(remainder for _, remainder in pairs) == remainders.num_rows - 1


def test_dimensions_fall_with_the_number_of_ids():
    assert mixed_dimensions([4, 16, 64], 16, 0.5, round_dims=False) == (16, 8, 4)
    assert mixed_dimensions([4, 16, 64], 16, 0.0, round_dims=False) == (16, 16, 16)
    assert mixed_dimensions([1, 10**9], 16, 1.0, round_dims=False) == (16, 1)
    assert mixed_dimensions([4, 7], 16, 0.5, round_dims=False) == (16, 12)
    assert mixed_dimensions([4, 7], 16, 0.5, round_dims=True) == (16, 16)  # log2 of 12 is 3.58
