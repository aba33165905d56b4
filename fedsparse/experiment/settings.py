"""The tables of a configuration file, except [method], whose settings live in the method's own class."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ClientTable", "DataTable", "EngineTable", "ModelTable", "RunTable"]

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class Table(BaseModel):
    """Base of all tables: unknown keys and silent conversions are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RunTable(Table):
    """[run]: what the run is called, how long it is and where it is written.

    Attributes:
        name: used in the folder name and in comparisons.
        seed: everything random follows from it.
        rounds: rounds of training.
        device: where clients and evaluation compute, `cpu`, `cuda` or `cuda:N`.
        out: folder of the run; None means `runs/<name>-<n>` with the next free n.
        eval_every: rounds between evaluations on the test set; the last round is always evaluated.
        checkpoint_every: rounds between checkpoints; the last round always writes one.
        trackers: what else the rounds are reported to: `tensorboard`, `wandb`, `mlflow`; each is an extra.
    """

    name: FolderName = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    rounds: Count = 10
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    out: Annotated[str, Field(min_length=1)] | None = None
    eval_every: Count = 1
    checkpoint_every: Count = 1
    trackers: tuple[str, ...] = ()


class DataTable(Table):
    """[data]: the data set and how the clients share it.

    Attributes:
        name: a data set of `fedsparse list datasets`.
        root: folder of the files; None means the environment variable FEDSPARSE_DATA, else `data`.
        clients: number of clients the training samples are dealt to.
        partition: `dirichlet` (label skew), `quantity` (quantity skew), `iid`, `shards`, or `natural`, where a
            story or speaker of a text set is a client and `clients` of them are drawn.
        alpha: concentration of the Dirichlet distribution of both skews; smaller is more skewed.
        min_samples: fewest samples that a client may hold.
        image_size: side to which images are resized, in pixels; None leaves them.
        train_limit, test_limit: class-balanced subset of that many samples, of text sets that many texts; None takes
            all.
        public_share: share of the training samples that the server holds for pretraining and scores, and no
            client.
        tokenizer: `bytes`, or a folder with GPT-2's vocab.json and merges.txt; for text sets.
        context: tokens of a sample of a text set.
        truncate: whether a text gives one sample only, its beginning.
    """

    name: str = "digits"
    root: Annotated[str, Field(min_length=1)] | None = None
    clients: Count = 8
    partition: Literal["dirichlet", "iid", "natural", "quantity", "shards"] = "dirichlet"
    alpha: Positive = 0.5
    min_samples: Count = 1
    image_size: Count | None = None
    train_limit: Count | None = None
    test_limit: Count | None = None
    public_share: Share = 0.0
    tokenizer: Annotated[str, Field(min_length=1)] = "bytes"
    context: Count = 256
    truncate: bool = False


class ModelTable(BaseModel):
    """[model]: a model of `fedsparse list models`; every further key is an option of that model."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    name: str = "mlp"

    @property
    def options(self) -> dict[str, object]:
        """Options of the model, as given."""
        return dict(self.model_extra or {})


class ClientTable(Table):
    """[client]: how a client trains.

    Attributes:
        per_round: clients in a cohort; None means all.
        epochs: local epochs.
        batch_size: samples of a mini-batch.
        optimizer: kind of optimiser, made anew for each client and round.
        lr, momentum, weight_decay: its settings; momentum is used by `sgd` alone.
    """

    per_round: Count | None = None
    epochs: Count = 1
    batch_size: Count = 32
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.05
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class EngineTable(Table):
    """[engine]: what runs the clients of a round.

    Attributes:
        kind: `inline` runs them in this process, `process` in workers on this host, `flower` on the nodes of Flower.
        workers: processes that share the clients of a round, with `superlink` the nodes that must be there; `inline`
            works in this one alone.
        threads: that a client computes with, in every engine, as results depend on it; None means this process's
            number, divided by `workers`. Given, it may be more than the cores can serve.
        timeout_s: seconds after which a worker that has not answered is given up; `inline` waits.
        min_clients: fewest usable answers in a round; with fewer the run fails, and can be resumed.
        cohort_batch: clients that `inline` serves at a time, of the 32 that the server asks at a time; the networks of
            those with equal masks train as one, for GPUs that a single one does not fill. Results differ by the order
            of sums.
        superlink: for `flower`, name of a connection in Flower's own configuration, to a SuperLink on this host; None
            simulates the nodes.
    """

    kind: str = "inline"
    workers: Count = 1
    threads: Count | None = None
    timeout_s: Positive = 600.0
    min_clients: Count = 1
    cohort_batch: Count = 1
    superlink: Annotated[str, Field(min_length=1)] | None = None
