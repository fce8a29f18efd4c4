"""Serve the refinement page and its API on Ray: look at labels, click, keep every revision."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from jobs._cli import Result, UsageError, job_parser, run

log = logging.getLogger(__name__)

HELP = """
The configuration is a file that `serve deploy` takes as well; --set sets a key of its `args`, such
as --set dataset=labels. Without tokens in it, one is made for this run and printed. Ends with
SIGTERM or SIGINT, when what is being answered has been answered.
"""
POLL_S = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    parser = job_parser("serve", __doc__ or "")
    parser.epilog = HELP
    parser.add_argument("--host", help="address to listen on; default 127.0.0.1")
    parser.add_argument("--port", type=int, help="default 8000")
    parser.add_argument(
        "--make-token",
        metavar="NAME",
        help="print a new token for NAME and its entry for the configuration, and end",
    )
    parser.add_argument(
        "--scope",
        choices=["read", "refine", "admin"],
        help="of --make-token, default refine; each includes those before it",
    )
    return run(parser, serve, argv)


def serve(options: argparse.Namespace) -> Result:
    """Serve until told to stop."""
    if options.make_token is not None:
        return _make_token(options.make_token, options.scope or "refine")
    if options.scope is not None:
        raise UsageError("maskmill serve: --scope goes with --make-token")
    from workflows.ray_session import Stopped, connected, stops_on_signal
    from workflows.service_auth import TokenConfig, make_token
    from workflows.service_config import load_serve_file, with_tokens

    given = {"host": options.host, "port": options.port}
    http = {key: value for key, value in given.items() if value is not None}
    file = load_serve_file(options.config, options.overrides, http)
    token = None
    if not file.config.tokens:
        token, digest = make_token()
        file = with_tokens(file, [TokenConfig("you", ("admin",), digest)])
    from workflows.refine_app import running

    began_s = time.monotonic()
    with connected(), running(file) as url, stops_on_signal(keep=lambda: None):
        where = f"{url}/#token={token}" if token else f"{url}/"
        print(f"maskmill serves {file.config.dataset} at {where}", file=sys.stderr, flush=True)
        try:
            while True:
                time.sleep(POLL_S)
        except Stopped:
            log.info("stopping: what is being answered is answered first")
    return Result({"url": url, "served_s": round(time.monotonic() - began_s, 1)})


def _make_token(name: str, scope: str) -> Result:
    from workflows.service_auth import make_token

    token, digest = make_token()
    print(f"token of {name}, shown this once: {token}")
    print(f"for the configuration:\n  - name: {name}\n    scopes: [{scope}]\n    sha256: {digest}")
    return Result({"name": name, "scopes": [scope], "sha256": digest})


if __name__ == "__main__":
    sys.exit(main())
