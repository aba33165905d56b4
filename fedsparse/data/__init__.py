"""Data sets on disk or embedded, and how clients share them."""

from fedsparse.data.federated import Dataset, FederatedDataset
from fedsparse.data.partition import partition
from fedsparse.data.sources import datasets, load
from fedsparse.data.texts import Cutting

__all__ = ["Cutting", "Dataset", "FederatedDataset", "datasets", "load", "partition"]
