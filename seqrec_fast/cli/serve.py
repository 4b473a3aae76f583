# SPDX-License-Identifier: Apache-2.0
"""``seqrec-fast serve``: a bundle behind HTTP."""

from __future__ import annotations

import json
import logging
import os
from argparse import ArgumentParser, Namespace

from seqrec_fast.cli.console import add_index_option, check_threads, number, say, whole_number
from seqrec_fast.errors import InputError, MissingExtraError

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  seqrec-fast serve bundle
  seqrec-fast serve bundle --host 0.0.0.0 --port 80 --max-k 200
  seqrec-fast serve bundle --sessions 1000000 --ttl 86400
  curl localhost:8000/recommend -d '{"history": ["318", "296"], "k": 5}'

The page at / tries it in the browser; /openapi.json describes every endpoint. On SIGTERM the server
says that it is not ready, goes on for --grace seconds, answers what is under way, and ends. On
SIGHUP it loads the bundle again.
"""

_LEVELS = ("critical", "error", "warning", "info", "debug")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by train")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=whole_number(0), default=8000, metavar="N", help="(default: 8000; 0: any)"
    )
    parser.add_argument(
        "--threads", type=whole_number(1), metavar="N", help="of one call (default: all cores)"
    )
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)"
    )
    add_index_option(parser)
    parser.add_argument(
        "--workers",
        type=whole_number(1),
        default=2,
        metavar="N",
        help="calls at work at once (default: 2)",
    )
    parser.add_argument(
        "--max-batch",
        type=whole_number(1),
        default=64,
        metavar="N",
        help="users of one call (default: 64)",
    )
    parser.add_argument(
        "--batch-window-ms",
        type=number,
        default=1.0,
        metavar="MS",
        help="how long a request may wait for company (default: 1; never if nothing runs)",
    )
    parser.add_argument(
        "--max-queue",
        type=whole_number(1),
        default=1024,
        metavar="N",
        help="users that may wait, more get 503 (default: 1024)",
    )
    parser.add_argument(
        "--deadline-ms", type=number, metavar="MS", help="longest wait, then 504 (default: none)"
    )
    parser.add_argument(
        "--max-k", type=whole_number(1), default=1000, metavar="N", help="(default: 1000)"
    )
    parser.add_argument(
        "--max-body",
        type=whole_number(1),
        default=1 << 20,
        metavar="BYTES",
        help="of a request (default: 1048576)",
    )
    parser.add_argument(
        "--max-history",
        type=whole_number(1),
        default=2000,
        metavar="N",
        help="events of a history (default: 2000)",
    )
    parser.add_argument(
        "--max-users",
        type=whole_number(1),
        default=256,
        metavar="N",
        help="histories of a request (default: 256)",
    )
    parser.add_argument(
        "--sessions",
        type=whole_number(1),
        metavar="CAPACITY",
        help="keep the state of so many live users: /users/{user}/events and so on",
    )
    parser.add_argument(
        "--ttl", type=number, metavar="S", help="drop the state of users silent for so long"
    )
    parser.add_argument(
        "--allow-reload", action="store_true", help="offer POST /admin/reload (keep it private)"
    )
    parser.add_argument(
        "--grace",
        type=number,
        default=2.0,
        metavar="S",
        help="from SIGTERM to the end of listening (default: 2)",
    )
    parser.add_argument("--json", action="store_true", help="tell the address as one JSON object")
    parser.add_argument(
        "--log-level", choices=_LEVELS, default="warning", help="(default: warning)"
    )


def run(args: Namespace) -> int:
    """Carries the command out and returns the exit code."""
    threads = check_threads(args.threads)
    for option, value in (("--ttl", args.ttl), ("--deadline-ms", args.deadline_ms)):
        if value is not None and value <= 0:
            raise InputError(f"{option}: must be above 0, found {value:g}")
    for option, value in (
        ("--batch-window-ms", args.batch_window_ms), ("--grace", args.grace)
    ):  # fmt: skip
        if value < 0:
            raise InputError(f"{option}: must not be negative, found {value:g}")
    if args.port > 65535:
        raise InputError(f"--port: at most 65535, found {args.port}")
    if args.sessions is not None and args.device != "cpu":
        raise InputError("--sessions: states of live users are kept on the CPU; drop --device")
    if args.ttl is not None and args.sessions is None:
        raise InputError("--ttl: holds for live users; give --sessions too")

    try:
        from seqrec_fast.serving.app import create_app
        from seqrec_fast.serving.server import serve
    except MissingExtraError:
        raise
    except ImportError as error:
        raise MissingExtraError(
            f"serving over HTTP needs {error.name}; install it with: "
            "pip install 'seqrec-fast[serve]'"
        ) from error
    from seqrec_fast.engine import Recommender
    from seqrec_fast.serving.limits import Limits

    logging.basicConfig(level=args.log_level.upper(), format="%(levelname)s: %(message)s")
    # Loaded before the server starts, so that a bundle that can't be served is one line and code 2.
    recommender = Recommender.load(
        args.bundle, threads=threads, device=args.device, retrieval=args.retrieval
    )
    app = create_app(
        recommender,
        path=args.bundle,
        threads=threads,
        window=args.batch_window_ms / 1e3,
        max_batch=args.max_batch,
        max_queue=args.max_queue,
        workers=args.workers,
        limits=Limits(
            k=args.max_k, history=args.max_history, users=args.max_users, body=args.max_body
        ),
        sessions=args.sessions,
        ttl=args.ttl,
        deadline=None if args.deadline_ms is None else args.deadline_ms / 1e3,
        reload=args.allow_reload,
    )

    def started(address: str) -> None:
        if args.json:  # in one line, so that a reader knows when it is complete
            say(json.dumps({"url": address, "bundle": args.bundle, "pid": os.getpid()}))
        else:
            say(f"serving {args.bundle} at {address}")

    serve(
        app,
        host=args.host,
        port=args.port,
        grace=args.grace,
        log_level=args.log_level,
        started=started,
    )
    return 0
