"""A server that speaks S3 and checks keys (moto), with one bucket and one user."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3

# Its port on the first line; from then on every request is checked against the keys that it gave out itself.
SERVER = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""
BUCKET, REGION = "checkpoints", "eu-west-1"
ALL_OF_S3 = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


@dataclass(frozen=True)
class S3:
    process: subprocess.Popen[bytes]
    port: int
    key: str
    secret: str

    @property
    def client(self) -> Any:
        return _client(self.port, "s3", self.key, self.secret)

    @property
    def uri(self) -> str:
        return f"s3://{BUCKET}/llama?endpoint_override=127.0.0.1:{self.port}&scheme=http&region={REGION}"

    def environment(self, **changes: str) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret} | changes

    def names(self) -> list[str]:
        listed = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return sorted(entry["Key"] for entry in listed if entry["Size"])


def _client(port: int, service: str, key: str, secret: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name=REGION,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )


@contextmanager
def s3_server(log: Path) -> Iterator[S3]:
    with log.open("wb") as said:
        process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=said)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        iam = _client(port, "iam", "nobody", "nothing")
        iam.create_user(UserName="hoofprint")
        iam.put_user_policy(UserName="hoofprint", PolicyName="s3", PolicyDocument=json.dumps(ALL_OF_S3))
        given = iam.create_access_key(UserName="hoofprint")["AccessKey"]
        found = S3(process, port, given["AccessKeyId"], given["SecretAccessKey"])
        place = {"LocationConstraint": REGION}
        found.client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
        _require_keys(port)
        yield found
    finally:
        process.kill()
        process.wait()


def _require_keys(port: int) -> None:
    head = {"Content-Type": "text/plain"}
    urlopen(Request(f"http://127.0.0.1:{port}/moto-api/reset-auth", b"0", head, method="POST"), timeout=30).close()
