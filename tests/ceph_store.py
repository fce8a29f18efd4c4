"""A real object store for slow tests: Ceph's gateway over a monitor and one disk, in one folder.

Needs Debian's packages ceph-mon, ceph-osd and radosgw, which root may install here; where that
fails the tests skip and say why. Nothing of an installed Ceph is touched.
"""

import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_ports
from object_store import CREDENTIALS, ObjectStore

PACKAGES = ("ceph-mon", "ceph-osd", "radosgw")
PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")
START_S = 120.0
# Without keys, for nobody else can reach it: then connections must not ask to be encrypted.
CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = {monitor}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
ms_mon_cluster_mode = crc
ms_mon_service_mode = crc
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_crush_chooseleaf_type = 0
osd_memory_target = 1000000000
osd_objectstore = bluestore
bluestore_block_size = 4294967296
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
pid_file = {folder}/$name.pid
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
"""


def install() -> None:
    """Skip unless the programs are there afterwards."""
    if all(shutil.which(name) for name in PROGRAMS):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"needs {', '.join(PACKAGES)}, which only root can install with apt-get")
    command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    for step in (["apt-get", "update"], command):
        ran = subprocess.run(step, capture_output=True, text=True)
        if ran.returncode != 0:
            pytest.skip(f"{' '.join(step)}: {ran.stderr.strip()[-300:]}")


class Ceph:
    """The processes of one store under a folder, ended with the block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        new, old, self.port = free_ports(3)
        self._monitor = f"[v2:127.0.0.1:{new},v1:127.0.0.1:{old}]"
        self._environment = {**os.environ, "CEPH_CONF": str(folder / "ceph.conf")}

    def __enter__(self) -> "Ceph":
        folder, fsid, disk = self._folder, str(uuid.uuid4()), str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir()
        (folder / "ceph.conf").write_text(
            CONFIGURATION.format(fsid=fsid, monitor=self._monitor, folder=folder)
        )
        monmap = str(folder / "monmap")
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", self._monitor, monmap)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self._start("ceph-mon", "-i", "a", "-f")
        self._run("ceph", "osd", "new", disk, "0")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._start("ceph-osd", "-i", "0", "-f")
        gateway = f"beast endpoint=127.0.0.1:{self.port}"
        self._start("radosgw", "-n", "client.rgw", "--rgw-frontends", gateway, "-f")
        key, secret = CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"]
        keys = ("--access-key", key, "--secret-key", secret)
        self._run("radosgw-admin", "user", "create", "--uid=t", "--display-name=t", *keys)
        self._wait_for_gateway()
        return self

    def __exit__(self, *exc: object) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()

    def _run(self, *command: str) -> None:
        ran = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=START_S
        )
        assert ran.returncode == 0, f"{' '.join(command)}: {ran.stderr}"

    def _start(self, *command: str) -> None:
        log = (self._folder / f"{command[0]}.out").open("wb")
        with log:
            process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        self._processes.append(process)

    def _wait_for_gateway(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}", timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < deadline, "the gateway does not answer"
                time.sleep(0.2)


class CephStore(ObjectStore):
    """As the other servers, but without a door that could misbehave."""

    def behave(self) -> None:
        pass


@pytest.fixture(scope="module")
def ceph_server() -> Iterator[CephStore]:
    install()
    # Not under pytest's folders: a socket's path may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ceph-", dir="/tmp") as folder:
        with Ceph(Path(folder)) as ceph:
            yield CephStore(f"http://127.0.0.1:{ceph.port}")
