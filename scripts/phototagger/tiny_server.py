"""llama.cpp's own HTTP server, as the package xllamacpp carries it, run until SIGTERM or SIGINT.

    python -m phototagger.tiny_server --model MODEL.gguf --mmproj MMPROJ.gguf --alias NAME

The package has no command of its own. This one takes the options that the tests' setup needs, named
as in llama-server, and serves any GGUF model. Port 0 is any free port. Requests in flight are cut
at the end.
"""

import argparse
import os
import signal
from collections.abc import Sequence

SIGNALS = {signal.SIGTERM, signal.SIGINT}


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal; never returns."""
    options = _options(arguments)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before the server starts its threads
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    if options.mmproj:
        params.mmproj.path = options.mmproj
    params.hostnames, params.port = [options.host], options.port
    params.n_ctx, params.n_parallel = options.ctx * options.parallel, options.parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.model_alias = {options.alias or options.model}
    server = xllamacpp.Server(params)
    print("listening on", server.listening_address, flush=True)
    signal.sigwait(SIGNALS)
    os._exit(0)  # with an mmproj loaded the server's destructor never returns (2026.10.11549)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m phototagger.tiny_server", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", required=True, metavar="FILE", help="language model, GGUF")
    parser.add_argument("--mmproj", metavar="FILE", help="image encoder, GGUF")
    parser.add_argument("--alias", metavar="NAME", help="name of the model; default: its path")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    parser.add_argument("--ctx", type=int, default=4096, help="tokens of context per slot")
    parser.add_argument("--parallel", type=int, default=4, help="slots")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
