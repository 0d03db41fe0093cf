"""The settings of a run: one validated model.

The same names serve as keys of a TOML file (`batch_size`), as flags (`--batch-size`) and as keyword arguments of
`ringtmp.train`. Every run folder, trace and checkpoint stores the whole model.
"""

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ringtmp.config.combinations import check_combinations
from ringtmp.errors import UserError
from ringtmp.kernels.registry import LOSSES, OPTIMIZERS, Registry, one_of
from ringtmp.schedule.registry import AUTO, SCHEDULES, schedule_named

Count = Annotated[int, Field(ge=1)]

# Fields whose values are the names of a registry, with the further words that each takes.
REGISTRIES: dict[str, tuple[Registry[Any], tuple[str, ...]]] = {
    "optimizer": (OPTIMIZERS, ()),
    "loss": (LOSSES, ("auto",)),
    "schedule": (SCHEDULES, (AUTO,)),
}


def _field(group: str, text: str, default: Any, **limits: Any) -> Any:
    return Field(default, description=text, json_schema_extra={"group": group}, **limits)


class RunConfig(BaseModel):
    """The settings of a run. Unknown keys, wrong types and impossible combinations are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: str = _field(
        "Data and model",
        "digits, breast-cancer, diabetes, a folder of IDX files, an .npz or HDF5 file with x and y, "
        "text:FILE for a character-level language model, or "
        "synthetic:samples=10000,features=64,classes=10",
        "digits",
    )
    model: str | list[dict[str, Any]] = _field(
        "Data and model",
        "mlp:IN-WIDTHxCOUNT-OUT, as in mlp:64-256x10-10 or mlp:64-256x10-10,activation=tanh; "
        "cnn:28x28-32c3-p2-64c3-p2-128-10; gpt:layers=8,width=256,heads=8,context=128; or a TOML file "
        "with [[layers]] tables. Input and output sizes must match the data",
        "mlp:64-256x8-10",
    )
    slices: Count = _field(
        "Data and model",
        "number of slices of the largest dense layers (by columns) and transformer blocks (by heads and "
        "hidden features): a layer that no node can hold is spread over several neighbours. Sliced layers"
        " sum in another order and start from other values than whole ones; only whole layers give the "
        "same bits on any number of ranks",
        1,
    )
    loss: str = _field("Data and model", "auto: cross-entropy for classes, mean squared error for values", "auto")
    normalise: Literal["auto", "feature", "global", "none"] = _field(
        "Data and model",
        "scale inputs to mean 0 and standard deviation 1 over the training samples: per feature, or with "
        "one pair of values for all features (images)",
        "auto",
    )
    test_fraction: float = _field(
        "Data and model",
        "fraction of the samples held out for testing, if the data have no test set of their own",
        0.2,
        gt=0,
        lt=1,
    )
    dtype: Literal["float32", "float64"] = _field("Data and model", "of weights, activations and gradients", "float32")

    epochs: Count = _field("Training", "passes over the training samples", 30)
    steps: Count | None = _field("Training", "optimizer steps in total; replaces --epochs", None)
    batch_size: Count = _field("Training", "samples per optimizer step, over all micro-batches", 64)
    micro_batches: Count = _field("Ring", "micro-batches per batch; need not divide the batch size", 8)
    optimizer: str = _field("Training", "update rule", "adamw")
    lr: float = _field("Training", "learning rate after the warm-up", 1e-3, gt=0)
    momentum: float = _field("Training", "momentum coefficient of --optimizer momentum", 0.9, ge=0, lt=1)
    weight_decay: float | None = _field(
        "Training", "L2 term in the gradient; decoupled for adamw. Default: 0.3 with adamw, else 0", None, ge=0
    )
    clip_value: float | None = _field("Training", "limit of the absolute value of each gradient element", None, gt=0)
    clip_norm: float | None = _field(
        "Ring",
        "limit of the norm of all gradients together. Each step then waits for one sum that travels round"
        " the ring, so steps no longer overlap",
        None,
        gt=0,
    )
    lr_schedule: Literal["constant", "cosine", "step"] = _field(
        "Training",
        "cosine falls to 0 at the last step; step multiplies the rate by --lr-factor every --lr-every steps",
        "cosine",
    )
    warmup_steps: int = _field("Training", "steps over which the rate rises from 0", 0, ge=0)
    lr_every: Count = _field("Training", "steps between two drops of --lr-schedule step", 1000)
    lr_factor: float = _field("Training", "factor of each drop of --lr-schedule step", 0.1, gt=0, le=1)
    seed: int = _field(
        "Training",
        "of initial values, dropout and data order; results never depend on the number of ranks",
        0,
        ge=0,
        lt=2**63,
    )
    eval_every: int | None = _field(
        "Training",
        "steps between two evaluations on the test set; default: every epoch; 0: at the end only",
        None,
        ge=0,
    )

    mode: Literal["ready", "strict"] | None = _field(
        "Ring",
        "ready: each rank runs what has arrived, without a plan; strict: each rank follows the plan of "
        "--schedule. Default: strict if a schedule is named, else ready",
        None,
    )
    schedule: str | None = _field(
        "Ring",
        "the plan that strict mode follows (default 1f1b); auto: the one that python -m ringtmp plan "
        "recommends. pipedream and 2bw do not wait for updates: weights are up to as many updates old as "
        "there are ranks, or one update old",
        None,
    )
    chunks: Count | None = _field(
        "Ring",
        "stages per rank: activations travel round the ring this many times. Default: 1; 2 for interleaved schedules",
        None,
    )
    in_flight: Count | None = _field(
        "Ring",
        "limit of the micro-batches that each chunk of a rank holds between F and W in ready mode. "
        "Default: 3 x ranks, or as many as one W takes together",
        None,
    )
    ahead: float | None = _field(
        "Ring",
        "limit of the forwards by which a rank may lead its input gradients in ready mode, per rank to "
        "its right. Default: learned from the rank's own waits; --schedule auto determines it by "
        "simulation",
        None,
        gt=0,
        le=100,
    )
    activation_memory: str | None = _field(
        "Ring", "limit of the bytes that micro-batches in flight take on each rank, as in 512MiB or 2GB", None
    )
    layer_split: str = _field(
        "Ring",
        "how layers are divided over ranks. flops: equal floating-point operations; measured: equal time,"
        " from each rank's own measured time per layer (python -m ringtmp bench prints it); even: equal "
        "number of layers; or the layers of each stage, as in 3,4,4",
        "flops",
    )
    allow_idle_ranks: bool = _field(
        "Ring",
        "on|off: exclude ranks that are so slow that the ring is faster without them; needs --layer-split measured",
        False,
    )
    balance: Literal["off", "auto"] = _field(
        "Ring",
        "auto: move layers between neighbours during training when the busiest rank computes longer than "
        "the average; changes no bit of the result",
        "off",
    )
    w_group: Count | None = _field(
        "Ring",
        "limit of the micro-batches that one weight-gradient product takes together in ready mode; "
        "changes no bit of the result. Default: as many as fill the product",
        None,
    )
    recompute: bool | Literal["auto"] = _field(
        "Ring",
        "on|off|auto: keep only the input of each micro-batch on each rank and compute its activations "
        "again before the backward pass: less memory, a third more work, the same bits. auto: only for as"
        " many layers as the memory limit requires",
        False,
    )
    memory_limit: str | None = _field(
        "Ring",
        "limit of the bytes that each rank may take in total, as in 3GiB. Limits of the process, its "
        "cgroup, SLURM and the node's free memory apply too; a network that does not fit is refused "
        "before any memory is allocated. off: no check",
        None,
    )
    threads: int = _field(
        "Training",
        "threads of a rank; they share the samples of a micro-batch, and the layers of an update. Changes"
        " no bit of the result",
        1,
        ge=1,
        le=1024,
    )
    rings: Count = _field(
        "Ring",
        "number of rings side by side (data parallelism over rings): each takes an equal share of every "
        "batch, and the gradients of a layer are summed across the rings, hop by hop in a fixed order. A "
        "network can then use more ranks than it has layers. The sums differ in rounding from those of "
        "one ring, and are the same in each run",
        1,
    )
    state_copies: int = _field(
        "Resilience",
        "off, or the number of right-hand neighbours that hold a copy of each rank's state (a server's "
        "state: one other rank). Copies lie in node memory (/dev/shm) in two versions, and a resumed run "
        "continues from them: at most one step is lost with a process or, if the copies lie on other "
        "nodes, with a node",
        0,
        ge=0,
    )
    heartbeat_timeout: float = _field(
        "Ring", "seconds without a sign of life after which a neighbour is considered hung and is killed", 60.0, gt=0
    )
    stall_timeout: float = _field(
        "Training", "seconds that a rank waits for others before it ends the job", 600.0, gt=0
    )

    consistency: Literal["bsp", "ssp", "asp", "allreduce"] = _field(
        "Server",
        "bsp: every step waits for all workers; ssp: a worker may lead the slowest one by --staleness "
        "steps; asp: no worker waits; allreduce: no server, gradients are summed round a ring of workers",
        "bsp",
    )
    staleness: int | None = _field(
        "Server", "steps by which --consistency ssp lets a worker lead the slowest one; default 3", None, ge=0
    )
    servers: Count = _field(
        "Server", "number of ranks that serve, from rank 0 on, each a part of every layer; the others work", 1
    )
    colocate: bool = _field(
        "Server", "on|off: every rank serves a part of the parameters and works (colocated servers)", False
    )
    batch_split: Literal["even", "measured"] = _field(
        "Server",
        "how each batch is divided over workers. even: equal numbers of samples; measured: in proportion "
        "to how fast each worker computes the network at the start",
        "even",
    )
    backup: int = _field(
        "Server",
        "number of workers that a bsp step does not wait for; the gradients of the slowest ones are dropped",
        0,
        ge=0,
    )
    message_size: str = _field(
        "Server",
        "limit of the bytes of one message of gradients or weights: larger layers are divided, small ones"
        " sent together",
        "1MiB",
    )
    compression: Literal["none", "float16", "topk"] = _field(
        "Server",
        "float16: gradients and weights travel in half precision; topk: only the --topk largest elements "
        "of each gradient are sent, the others are added to the next gradient",
        "none",
    )
    topk: float = _field("Server", "fraction of the elements that --compression topk sends", 0.01, gt=0, le=1)
    local_steps: Count = _field(
        "Server",
        "optimizer steps that each worker makes between two exchanges; the exchange then carries the "
        "differences to the weights at its start, and momentum or moments are reset each time",
        1,
    )
    worker_micro_batches: Count = _field(
        "Server",
        "micro-batches into which a worker divides its part of each batch; more of them take less memory."
        " Changes no bit of the result",
        1,
    )
    worker_timeout: float = _field(
        "Server",
        "seconds after which a silent worker is dropped and its part of the batch goes to the others",
        60.0,
        gt=0,
    )

    out: str = _field("Run folder", "folder in which run folders are made", "runs")
    name: str | None = _field(
        "Run folder", "name of this run's folder, which must not exist. Default: data and time", None
    )
    resume: str | None = _field(
        "Run folder",
        "run folder to continue from, on any number of ranks: in place, or, with --name, as the start of a new run",
        None,
    )
    checkpoint_every: int = _field("Run folder", "steps between two checkpoints; 0: only at the end", 200, ge=0)
    mtbf: float | None = _field(
        "Run folder",
        "expected seconds between failures; checkpoints are then written at the interval of Young and "
        "Daly, from the measured cost of the previous one. Replaces --checkpoint-every",
        None,
        gt=0,
    )
    trace: bool = _field("Run folder", "on|off: record every action of every rank", True)
    sends: Literal["standard", "synchronous"] = _field(
        "Ring",
        "synchronous: every send blocks until it is received (MPI_Ssend). With several chunks this holds "
        "for a plan's messages only: without a plan the ranks of a ring could wait for each other",
        "standard",
    )
    node_speed: str | None = _field(
        "Emulation",
        "emulate nodes of this speed in GFLOP/s, for all ranks or one value per rank, as in 2,2,0.5: each"
        " action is extended by sleeping. 2@50:1 changes to 1 at step 50; 2@50-90:1 changes gradually "
        "from step 50 to 90",
        None,
    )
    jitter: float = _field(
        "Emulation",
        "on emulated nodes: multiply the duration of each action by a factor uniform in 1 +- this value",
        0.0,
        ge=0,
        lt=1,
    )
    delay: float = _field("Emulation", "largest random delay before each action, in seconds", 0.0, ge=0, le=10)

    @field_validator(*REGISTRIES)
    @classmethod
    def _registered(cls, name: str | None, field: ValidationInfo) -> str | None:
        registry, words = REGISTRIES[str(field.field_name)]
        if name is not None and name not in words and name not in registry:
            raise ValueError(one_of([*words, *registry.names()]))
        return name

    @field_validator("state_copies", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return 0 if value in ("off", False) else value

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str | None) -> str | None:
        if name is not None and (not name or "/" in name or name in (".", "..")):
            raise ValueError("a folder name without '/'")
        return name

    @model_validator(mode="after")
    def _combinations(self) -> "RunConfig":
        check_combinations(self)
        return self

    def stored(self) -> dict[str, Any]:
        """Every value in a form that can be read back, as run folders, traces and checkpoints store it."""
        instead = {"epochs"} if self.steps else set()
        return self.model_dump(exclude_none=True, exclude=instead | ({"checkpoint_every"} if self.mtbf else set()))

    @property
    def effective_mode(self) -> str:
        """`ready` or `strict`, with the default resolved."""
        return self.mode or ("ready" if schedule_named(self.schedule).follows_rule else "strict")

    @property
    def effective_chunks(self) -> int:
        """Stages of a rank, with the default resolved."""
        return self.chunks or (schedule_named(self.schedule).default_chunks if self.effective_mode == "strict" else 1)

    @property
    def bound(self) -> int:
        """Steps by which a worker may lead the slowest one; -1: no limit."""
        if self.consistency == "ssp":
            return 3 if self.staleness is None else self.staleness
        return -1 if self.consistency == "asp" else 0

    @property
    def effective_weight_decay(self) -> float:
        """Weight decay, with the default resolved. Decoupled decay is scaled by the learning rate, so 0.3 is mild."""
        if self.weight_decay is not None:
            return self.weight_decay
        return OPTIMIZERS[self.optimizer].weight_decay


def make_config(values: dict[str, Any], where: str = "") -> RunConfig:
    """Validate `values`; on the first fault raise a `UserError` that names the key and what was expected.

    Parameters
    ----------
    values : dict
        Keys as in `RunConfig`; strings are converted ("64" -> 64, "off" -> False).
    where : str
        Put before the key in messages: a file's name.
    """
    for key in values:
        if key not in RunConfig.model_fields:
            near = difflib.get_close_matches(key, RunConfig.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(RunConfig.model_fields)}"
            raise UserError(f"{where}unknown key {key!r}{hint}")
    try:
        return RunConfig(**values)
    except ValidationError as error:
        fault = error.errors()[0]
        text = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:
            raise UserError(f"{where}{text}") from None
        key = str(fault["loc"][0])
        expected = text.removeprefix("Input should be ")
        raise UserError(f"{where}{key}: expected {expected}, got {fault['input']!r}") from None
