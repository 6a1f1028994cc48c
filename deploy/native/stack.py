"""Run the processes of deploy/compose without containers.

They are Postgres, Redis, the Prefect server, its background services and two workers. ``python
deploy/native/stack.py --folder DIR`` starts them on free ports of this machine, with ``deploy/settings``
and fresh passwords. It prints how to use them, and ends them at Ctrl-C or SIGTERM. The
data stay in DIR, and a second start continues with them. It needs the Debian packages ``postgresql`` and
``redis-server``. The tests marked `service` run the pipeline on it.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

from flows.children import supervised_process

DEPLOY = Path(__file__).resolve().parents[1]
ENTRYPOINT = DEPLOY / "docker" / "entrypoint.sh"
DATABASE_USER = "prefect"
START_SECONDS = 240.0
STOP_SECONDS = 60.0
POOLS = ("jora-cpu", "jora-gpu")


class CannotStart(RuntimeError):
    """A program is missing on this machine, or a process did not start."""


def find_postgres() -> Path:
    """Return the folder of Postgres's programs, which Debian leaves out of PATH.

    Raises:
        CannotStart: Postgres is not installed.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if found:
        return found[-1]
    if program := shutil.which("postgres"):
        return Path(program).parent
    raise CannotStart("no postgres; install the Debian package postgresql")


def read_settings(path: Path) -> dict[str, str]:
    """Return the settings of a file with lines ``NAME=value`` and comments."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@contextmanager
def stack(folder: Path, password: str | None = None) -> Iterator[dict[str, str]]:
    """Run all processes during the block; yield the environment for clients of the server.

    Args:
        folder: the data of Postgres and Redis, the secrets and the logs.
        password: user and password of the server as ``USER:PASSWORD``; None makes a new one.

    Raises:
        CannotStart: a program is missing, or a process did not start. The message has its last lines.
    """
    postgres = find_postgres()
    if not (redis := shutil.which("redis-server")):
        raise CannotStart("no redis-server; install the Debian package redis-server")
    folder.mkdir(parents=True, exist_ok=True)
    files = _secret_files(folder / "secrets", password)
    names = ("postgres", "redis", "server", *POOLS, *(f"{pool} metrics" for pool in POOLS))
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    api_url = f"http://127.0.0.1:{ports['server']}/api"
    common = {
        **read_settings(DEPLOY / "settings" / "common.env"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": api_url,
        "PREFECT_API_AUTH_STRING_FILE": str(files["api_auth"]),
    }
    server = {
        **common,
        **read_settings(DEPLOY / "settings" / "server.env"),
        "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
        "PREFECT_SERVER_DATABASE_PORT": str(ports["postgres"]),
        "PREFECT_SERVER_DATABASE_USER": DATABASE_USER,
        "PREFECT_SERVER_DATABASE_NAME": DATABASE_USER,
        "PREFECT_SERVER_DATABASE_PASSWORD_FILE": str(files["postgres_password"]),
        "JORA_REDIS_HOST": "127.0.0.1",
        "JORA_REDIS_PORT": str(ports["redis"]),
        "JORA_REDIS_PASSWORD_FILE": str(files["redis_password"]),
        "PREFECT_SERVER_API_AUTH_STRING_FILE": str(files["api_auth"]),
        "PREFECT_UI_API_URL": api_url,
    }
    with ExitStack() as running:

        def start(
            name: str, command: list[str], environment: Mapping[str, str], ready: Callable[[], bool]
        ) -> None:
            running.enter_context(_process(name, command, environment, ready, folder / "logs"))

        start(
            "postgres",
            _postgres_command(postgres, folder / "postgres", ports["postgres"], files["postgres_password"]),
            {},
            lambda: _takes_queries(postgres, ports["postgres"]),
        )
        _make_database(postgres, ports["postgres"], files["postgres_password"])
        start(
            "redis",
            [redis, *_redis_options(folder / "redis", ports["redis"], files["redis_password"])],
            {},
            lambda: _has_loaded(ports["redis"], files["redis_password"]),
        )
        _run("migration", [str(ENTRYPOINT), "prefect", "server", "database", "upgrade", "-y"], server)
        command = [
            "prefect",
            "server",
            "start",
            "--no-services",
            "--host",
            "127.0.0.1",
            "--port",
            str(ports["server"]),
        ]
        start("server", [str(ENTRYPOINT), *command], server, lambda: _answers(f"{api_url}/health"))
        start("services", [str(ENTRYPOINT), "prefect", "server", "services", "start"], server, lambda: True)
        for pool in POOLS:
            worker = {
                **common,
                "PREFECT_WORKER_WEBSERVER_PORT": str(ports[pool]),
                "PREFECT_CLIENT_METRICS_ENABLED": "true",
                "PREFECT_CLIENT_METRICS_PORT": str(ports[f"{pool} metrics"]),
            }
            start(
                pool,
                [str(ENTRYPOINT), *worker_command(pool)],
                worker,
                lambda pool=pool: _answers(f"http://127.0.0.1:{ports[pool]}/health"),
            )
        yield {
            "PREFECT_HOME": str(folder / "client"),
            "PREFECT_API_URL": api_url,
            "PREFECT_API_AUTH_STRING": files["api_auth"].read_text(encoding="utf-8"),
            "DO_NOT_TRACK": "1",
        }


@contextmanager
def database(folder: Path) -> Iterator[str]:
    """Run Postgres alone during the block; yield the connection URL of a database for Prefect.

    Args:
        folder: the data, the password and the log; a second start continues with them.

    Raises:
        CannotStart: Postgres is missing, or did not start. The message has its last lines.
    """
    programs = find_postgres()
    folder.mkdir(parents=True, exist_ok=True)
    password = _secret_files(folder / "secrets", None)["postgres_password"]
    (port,) = _free_ports(1)
    command = _postgres_command(programs, folder / "data", port, password)
    with _process("postgres", command, {}, lambda: _takes_queries(programs, port), folder / "logs"):
        _make_database(programs, port, password)
        secret = quote(password.read_text(encoding="utf-8"), safe="")
        yield f"postgresql+asyncpg://{DATABASE_USER}:{secret}@127.0.0.1:{port}/{DATABASE_USER}"


def worker_command(pool: str) -> list[str]:
    """Return the command of a worker. Limit 1: one run at a time has all devices of the machine."""
    command = ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", f"{pool}-1"]
    return [*command, "--limit", "1", "--with-healthcheck"]


def _secret_files(folder: Path, api_auth: str | None) -> dict[str, Path]:
    folder.mkdir(exist_ok=True, mode=0o700)
    wanted = {"postgres_password": None, "redis_password": None, "api_auth": api_auth}
    files = {}
    for name, value in wanted.items():
        files[name] = folder / name
        if value is None and files[name].exists():
            continue
        # The signs @ and / prove that a password is encoded where it becomes part of a URL.
        made = f"operator:{secrets.token_hex(16)}" if name == "api_auth" else f"{secrets.token_hex(12)}@/x"
        files[name].write_text(value or made, encoding="utf-8")
        files[name].chmod(0o600)
    return files


def _as_postgres(command: list[str]) -> list[str]:
    """Return the command as the user postgres if we are root, because Postgres refuses to run as root."""
    return (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        if _is_root()
        else command
    )


def _is_root() -> bool:
    return os.geteuid() == 0


def _postgres_command(programs: Path, data: Path, port: int, password: Path) -> list[str]:
    """Return the command of Postgres; make its data folder first if there is none."""
    if not (data / "PG_VERSION").exists():
        data.mkdir(exist_ok=True, mode=0o700)
        given = password
        if _is_root():
            owner = pwd.getpwnam("postgres")
            # initdb runs as postgres and cannot read the secret of root.
            given = data.with_name("postgres.password")
            given.write_text(password.read_text(encoding="utf-8"), encoding="utf-8")
            given.chmod(0o600)
            for path in (data, given):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        command = [str(programs / "initdb"), "-D", str(data), "-U", DATABASE_USER, "-A", "scram-sha-256"]
        try:
            _run("initdb", _as_postgres([*command, "-E", "UTF8", "--pwfile", str(given)]), {})
        finally:
            if given != password:
                given.unlink()
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={data}"]
    return _as_postgres([str(programs / "postgres"), "-D", str(data), *options])


def _make_database(programs: Path, port: int, password: Path) -> None:
    """Create the database of Prefect if there is none."""
    address = ["-h", "127.0.0.1", "-p", str(port), "-U", DATABASE_USER]
    environment = {"PGPASSWORD": password.read_text(encoding="utf-8")}
    query = [str(programs / "psql"), *address, "-d", "postgres", "-Atc", "SELECT datname FROM pg_database"]
    if DATABASE_USER not in _run("psql", query, environment).split():
        _run("createdb", [str(programs / "createdb"), *address, DATABASE_USER], environment)


def _redis_options(data: Path, port: int, password: Path) -> list[str]:
    data.mkdir(exist_ok=True)
    # In a file, because a command line is visible to all users of the machine.
    config = data / "redis.conf"
    config.write_text(
        f"bind 127.0.0.1\nport {port}\ndir {data}\nappendonly yes\n"
        f"requirepass {password.read_text(encoding='utf-8')}\n",
        encoding="utf-8",
    )
    config.chmod(0o600)
    return [str(config)]


@contextmanager
def _process(
    name: str, command: list[str], environment: Mapping[str, str], ready: Callable[[], bool], logs: Path
) -> Iterator[None]:
    """Run one process during the block, which begins when the process is ready."""
    logs.mkdir(exist_ok=True)
    path = logs / f"{name}.log"
    with path.open("ab") as log:
        process = supervised_process.start(command, dict(environment), log.fileno())
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.ended() or time.monotonic() > deadline:
                tail = "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
                raise CannotStart(f"{name} did not start; the end of {path}:\n{tail}")
            time.sleep(0.2)
        yield
    finally:
        process.end(STOP_SECONDS)


def _run(name: str, command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotStart(f"{name} failed with exit status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _free_ports(count: int) -> list[int]:
    """Return different local TCP ports on which no program listens now."""
    with ExitStack() as open_ones:
        # All are open at the same time, so that no port is returned twice.
        probes = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _takes_queries(programs: Path, port: int) -> bool:
    """Return whether Postgres takes queries; its port is open earlier, while it still starts up."""
    command = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(command, check=False).returncode == 0


def _has_loaded(port: int, password: Path) -> bool:
    """Return whether Redis takes commands; its port is open earlier, while it still loads its data."""
    environment = {**os.environ, "REDISCLI_AUTH": password.read_text(encoding="utf-8").strip()}
    command = ["redis-cli", "-h", "127.0.0.1", "-p", str(port), "ping"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return answer.stdout.strip() == "PONG"


def _answers(url: str) -> bool:
    try:
        # Without a proxy: a proxy of the company cannot reach this machine's ports.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2):
            return True
    except OSError:
        return False


def main() -> int:
    """Run the processes until SIGTERM or Ctrl-C; return the exit status."""
    parser = argparse.ArgumentParser(prog="deploy/native/stack.py", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="data, secrets and logs; made if absent")
    folder = parser.parse_args().folder.resolve()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        with stack(folder) as client:
            (folder / "client.json").write_text(json.dumps(client), encoding="utf-8")
            (folder / "client.json").chmod(0o600)
            print(f"UI:       {client['PREFECT_API_URL'].removesuffix('/api')}")
            print(f"Password: {folder / 'secrets' / 'api_auth'}")
            print(f"Client:   {folder / 'client.json'}, the environment of jora and prefect")
            print("ready; Ctrl-C ends all processes", flush=True)
            signal.pause()
    except CannotStart as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
