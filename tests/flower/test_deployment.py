"""A SuperLink and two SuperNodes on the loopback, with and without TLS."""

import datetime
import ipaddress
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager

import pytest

from fedsparse.experiment.toml_text import to_toml
from fedsparse.flower.app import AppSettings, write_app
from fedsparse.flower.superlink import SuperLink, command, end, free_port, quiet
from tests.flower.troubled import install, left_over

pytest.importorskip("flwr", reason="needs flwr: pip install 'fedsparse[flower]'")
pytestmark = pytest.mark.slow

NODES = 2


def certificates(folder):
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    authority = x509.BasicConstraints(ca=True, path_length=None)
    certificate = (
        builder.add_extension(names, critical=False).add_extension(authority, critical=True).sign(key, hashes.SHA256())
    )
    crt, pem = folder / "server.crt", folder / "server.key"
    crt.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    pem.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return crt, pem


@contextmanager
def started(name, *arguments, environment, folder):
    """One of Flower's commands, stopped with all it has started."""
    with (folder / f"{name}-{len(list(folder.iterdir()))}.log").open("wb") as log:
        process = subprocess.Popen(
            [command(name), *arguments],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process)


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, "Flower's process ended"
        time.sleep(0.2)


@pytest.fixture(params=["plain", "tls"])
def deployed(request, tmp_path):
    """A SuperLink that two nodes serve, in a Flower home of its own, and the folder its processes work in."""
    home, folder = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    folder.mkdir()
    path = os.pathsep.join([str(install(tmp_path / "plugin")), *(p for p in sys.path if p)])
    changed = {"FLWR_HOME": str(home), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment, port = quiet(changed), free_port()
    server = node = ["--insecure"]
    connection = "insecure = true"
    if request.param == "tls":
        crt, key = certificates(tmp_path)
        server = ["--ssl-ca-certfile", crt, "--ssl-certfile", crt, "--ssl-keyfile", key]
        node = ["--root-certificates", crt]
        connection = f'root-certificates = "{crt}"'
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "127.0.0.1:{port}"\n{connection}\n'
    )
    with ExitStack() as stack:
        here = {"environment": environment, "folder": folder}
        arguments = [*map(str, server), "--host", "127.0.0.1", "--port", str(port)]
        link = stack.enter_context(
            started("flower-superlink", *arguments, "--disable-runtime-dependency-installation", **here)
        )
        wait_for(lambda: healthy(request.param, port, tmp_path), link)
        for number in range(NODES):
            place = ["--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
            settings = ["--node-config", f"partition-id={number} num-partitions={NODES}"]
            stack.enter_context(started("flower-supernode", *map(str, node), *place, *settings, **here))
        yield SuperLink("loop", changed)
    assert left_over(home) == []


def healthy(kind, port, folder):
    context = ssl.create_default_context(cafile=folder / "server.crt") if kind == "tls" else None
    scheme = "https" if kind == "tls" else "http"
    try:
        with urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}/health", timeout=5, context=context):
            return True
    except OSError:
        return False


def test_two_rounds_with_a_client_that_breaks_and_a_process_that_is_killed(deployed, tmp_path):
    orders, out = tmp_path / "orders", tmp_path / "run"
    orders.mkdir()
    (orders / "2-1").touch()
    config = {
        "run": {"rounds": 2, "out": str(out), "checkpoint_every": 2},
        "data": {"name": "digits", "clients": 4, "image_size": 12, "train_limit": 200, "test_limit": 50},
        "model": {"name": "lenet"},
        "method": {"name": "troubled", "density": 0.2, "broken": 1, "folder": str(orders)},
        "client": {"per_round": 4},
        "engine": {"threads": 1, "timeout_s": 60.0},
    }
    write_app(tmp_path / "app", AppSettings(config=to_toml(config), nodes=NODES))
    run_id = deployed.submit(tmp_path / "app")
    while not (status := deployed.status(run_id)).finished:
        time.sleep(1.0)
    assert status.succeeded, deployed.log(run_id)
    rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(r["clients"], r["clients_failed"]) for r in rounds] == [(3, 1), (3, 1)]
    assert (orders / "2-1.obeyed").exists()
    assert rounds[1]["clients_retried"] == 2
    clients = [json.loads(line) for line in (out / "clients.jsonl").read_text().splitlines()]
    (first, second) = (line["reason"] for line in clients if line["status"] == "failed")
    assert "this client is broken" in first
    assert first == second
    assert json.loads((out / "summary.json").read_text())["complete"]
