"""Rows as a trained net scores them."""

import torch
from torch import nn

from llm4msr.model.net import RankerNet
from llm4msr.training.batches import RowReader
from llm4msr.training.dataset import Dataset
from llm4msr.training.metrics import Predictions


@torch.inference_mode()
def predict(
    net: RankerNet,
    data: Dataset,
    rows: RowReader,
    batch_size: int,
    partition: int | None = None,
    share: int = 0,
    shares: int = 1,
) -> Predictions:
    """Score rows in evaluation mode, in the order of their files.

    Args:
        net: scores on the device where it is.
        data: what the net reads beside the rows.
        rows: which rows.
        batch_size: rows that are scored at once, about.
        partition: whose rows; None for all.
        share: of the users, those whose number has this remainder
        shares: when divided by this.
    """
    net.eval()
    device, parts = device_of(net), [Predictions.none()]
    for batch in rows.in_file_order(batch_size * shares, partition):
        part = batch if shares == 1 else batch.take(batch.user_B % shares == share)
        if len(part.user_B):
            logits = net(data.batch(part, net).to(device))
            columns = (part.user_B, part.scenario_B, part.label_B, logits.cpu())
            parts.append(Predictions(*(column.numpy() for column in columns)))
    return Predictions.concatenate(parts)


def device_of(net: nn.Module) -> torch.device:
    """Where its weights are."""
    return next(net.parameters()).device
