"""OpenStack Swift with its S3 API, one replica, in one process: `python s3_server.py FOLDER`.

The four servers that a Swift is (proxy, account, container, object) listen on free ports of
127.0.0.1 and keep what they are given as files below FOLDER, which must not exist. The port that
speaks S3 is written to FOLDER/port. Requests have to be signed by `test:tester` with `testing`.

Runs in `.venv-s3-server` (`make s3-server`), which has nothing of photo-tagger's.
"""

import os
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")  # eventlet's advice for new projects

import eventlet  # noqa: E402

eventlet.monkey_patch()

import eventlet.wsgi  # noqa: E402
from swift.common import utils, wsgi  # noqa: E402
from swift.common.ring import RingBuilder  # noqa: E402

STORAGE = ("account", "container", "object")

SWIFT = """
[swift-hash]
swift_hash_path_prefix = photo
swift_hash_path_suffix = tagger
"""

STORAGE_SERVER = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY = """
[DEFAULT]
swift_dir = {folder}
[pipeline:main]
pipeline = catch_errors cache s3api tempauth bulk slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
"""


def load(folder: Path, kind: str, text: str) -> object:
    path = folder / f"{kind}.conf"
    path.write_text(text.format(folder=folder, kind=kind))
    return wsgi.loadapp(str(path), global_conf={})


def write_ring(folder: Path, kind: str, port: int) -> None:
    """Say that everything of a kind is on one disk, behind one port."""
    ring = RingBuilder(part_power=4, replicas=1, min_part_hours=1)
    where = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port}
    ring.add_dev({**where, "device": "disk", "weight": 1})
    ring.rebalance()
    ring.get_ring().save(str(folder / f"{kind}.ring.gz"))


def serve(folder: Path) -> None:
    (folder / "devices/disk").mkdir(parents=True)
    (folder / "swift.conf").write_text(SWIFT)
    utils.SWIFT_CONF_FILE = str(folder / "swift.conf")
    utils.validate_hash_conf()
    sockets = {kind: eventlet.listen(("127.0.0.1", 0)) for kind in STORAGE}
    for kind, socket in sockets.items():
        write_ring(folder, kind, socket.getsockname()[1])
    for kind, socket in sockets.items():
        app = load(folder, kind, STORAGE_SERVER)
        eventlet.spawn(eventlet.wsgi.server, socket, app, log_output=False)
    front = eventlet.listen(("127.0.0.1", 0))
    app = load(folder, "proxy", PROXY)
    (folder / "port.new").write_text(str(front.getsockname()[1]))
    os.replace(folder / "port.new", folder / "port")
    eventlet.wsgi.server(front, app, log_output=False)


if __name__ == "__main__":
    serve(Path(sys.argv[1]).resolve())
