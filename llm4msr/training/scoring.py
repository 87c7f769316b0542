"""Rows as a trained net scores them."""

import numpy as np
import torch
from torch import nn

from llm4msr.data import partitions
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
    """Score rows in evaluation mode, in the order of their files; users are `people`.

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
    device, parts, events = device_of(net), [Predictions.none()], [np.empty(0, np.int64)]
    for batch in rows.in_file_order(batch_size * shares, partition):
        part = batch if shares == 1 else batch.take(batch.user_B % shares == share)
        if len(part.user_B):
            logits = net(data.batch(part, net).to(device))
            columns = (part.user_B, part.scenario_B, part.label_B, logits.cpu())
            parts.append(Predictions(*(column.numpy() for column in columns)))
            if part.event_B is not None:
                events.append(part.event_B.numpy())
    scored = Predictions.concatenate(parts)
    return scored._replace(user=partitions.people(data.prepared, scored.user, np.concatenate(events)))


def device_of(net: nn.Module) -> torch.device:
    """Where its weights are."""
    return next(net.parameters()).device
