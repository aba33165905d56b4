"""The Flower app that `fedsparse flower init` names: a configuration becomes rounds on the server, clients on nodes."""

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsparse.errors import ConfigError, FedsparseError
from fedsparse.experiment.config import Config, load_config
from fedsparse.experiment.flower_run import STOP, report_end
from fedsparse.experiment.plan import build_plans
from fedsparse.experiment.session import begin, continued
from fedsparse.federated.loop import Outcome, run_rounds
from fedsparse.federated.plan import Plan
from fedsparse.flower import node
from fedsparse.flower.app import AppSettings
from fedsparse.flower.engine import EXCHANGE, HAND_OVER, HELLO, TAKE_BACK, FlowerEngine

__all__ = ["client", "server"]

_log = logging.getLogger("flwr")


# ---- the server
def _serve(grid: Grid, context: Context) -> None:
    settings = AppSettings.read(context.run_config)
    if settings.server_threads:
        torch.set_num_threads(settings.server_threads)
    if settings.run:
        _serve_begun(grid, settings, Path(settings.run))
        return
    session = continued(settings.resume) if settings.resume else begin(_single(settings))
    (result,) = session.go_on(
        on_round=lambda _, record: _log.info("%s", dict(record)),
        should_stop=lambda: False,
        rounds=partial(_rounds, grid, settings),
    )
    _log.info("written to %s on this host: %s", result.dir.resolve(), result.final)


def _serve_begun(grid: Grid, settings: AppSettings, folder: Path) -> None:
    """The rounds of a run whose folder another process has made, and to which it says how they ended."""
    try:
        config = _single(settings)
        (plan,) = build_plans([config])
        outcome = _rounds(grid, settings, config, plan, folder, on_round=_unwatched, should_stop=(folder / STOP).exists)
    except FedsparseError as error:
        report_end(folder, error)
        raise
    report_end(folder, outcome)


def _unwatched(_: Mapping[str, object]) -> None:
    """The other process reads the records."""


def _rounds(
    grid: Grid,
    settings: AppSettings,
    config: Config,
    plan: Plan,
    folder: Path,
    *,
    on_round: Callable[[Mapping[str, object]], None],
    should_stop: Callable[[], bool],
) -> Outcome:
    """The rounds of one run, on Flower's nodes."""
    engine = FlowerEngine(
        grid,
        nodes=settings.nodes,
        timeout_s=config.engine.timeout_s,
        most_bytes=plan.most_bytes(),
        folder=folder / ".clients",
    )
    with closing(engine):
        return run_rounds(
            _threaded(plan, settings), engine, folder=folder, resume=True, on_round=on_round, should_stop=should_stop
        )


# ---- the clients
def _exchange(message: Message, context: Context) -> Message:
    settings = AppSettings.read(context.run_config)
    return node.exchange(message, context, _desk(settings.config, settings.threads))


@lru_cache(maxsize=1)  # a process of a simulation serves many messages of one run
def _desk(config: str, threads: int) -> node.Desk:
    settings = AppSettings(config=config, threads=threads)
    (plan,) = build_plans([_single(settings)])
    plan = _threaded(plan, settings)
    torch.set_num_threads(plan.threads or torch.get_num_threads())
    return node.Desk(plan)


def _single(settings: AppSettings) -> Config:
    config = load_config(settings.config)
    if config.variants:
        raise ConfigError(
            f"the configuration describes {len(config.variants)} variants: a Flower app runs one of them; "
            "`fedsparse run CONFIG --engine flower` runs them all"
        )
    return config


def _threaded(plan: Plan, settings: AppSettings) -> Plan:
    return replace(plan, threads=settings.threads or plan.threads)


def _apps() -> tuple[Any, Any]:
    server, client = ServerApp(), ClientApp()
    server.main()(_serve)
    client.train(EXCHANGE.partition(".")[2])(_exchange)
    for kind, answer in ((HELLO, node.hello), (HAND_OVER, node.hand_over), (TAKE_BACK, node.take_back)):
        client.query(kind.partition(".")[2])(answer)
    return server, client


server, client = _apps()
