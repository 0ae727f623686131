"""The options of facebookresearch/dlrm's generators."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReferenceStream:
    """The reference's options of generated data.

    Attributes:
        generation: ``random``, or ``synthetic`` for ids by trace files.
        data_size: samples of an epoch, if ``num_batches`` is 0.
        num_batches: batches of an epoch; 0: as many as ``data_size`` gives, the last one smaller if need be.
        mini_batch_size: samples of a batch.
        num_indices_per_lookup: the most draws of a bag.
        num_indices_per_lookup_fixed: every bag draws the most.
        rand_data_dist: of ids in ``random`` data: ``uniform`` over the table or ``gaussian``.
        rand_data_min: gaussian draws below it become it.
        rand_data_max: gaussian draws above it become it.
        rand_data_mu: mean of the gaussian; -1: midway between ``rand_data_min`` and ``rand_data_max``.
        rand_data_sigma: standard deviation of the gaussian.
        data_trace_file: of ``synthetic`` data; every letter j in it stands for the table's number.
        data_trace_enable_padding: no new ids once the longest stack distance has been reached.
        round_targets: labels are 0 or 1 instead of any number between.
        seed: 0 to 2^32 - 1.
    """

    generation: str
    data_size: int
    num_batches: int
    mini_batch_size: int
    num_indices_per_lookup: int
    num_indices_per_lookup_fixed: bool
    rand_data_dist: str
    rand_data_min: float
    rand_data_max: float
    rand_data_mu: float
    rand_data_sigma: float
    data_trace_file: str
    data_trace_enable_padding: bool
    round_targets: bool
    seed: int
