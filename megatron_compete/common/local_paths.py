"""Places in object storage (`msc://`, `s3://`, ...), which this project would take for local folders."""

import re

from megatron_compete.common.errors import CompeteError

_REMOTE = re.compile(r"(msc|s3|gs|gcs|az|abfss?|wasbs?|hdfs|oci|ais):/", re.IGNORECASE)  # a Path has one of the slashes


def check_local(flag: str, value: object) -> None:
    """Raise a `CompeteError` for a place in object storage, in a value or in a list of values."""
    for item in value if isinstance(value, list | tuple) else [value]:
        if _REMOTE.match(str(item)):
            raise CompeteError(
                f"{flag} {item}: object storage is not read or written here, and this would become a local folder: mount it "
                "(mount-s3, gcsfuse, rclone) and give the path"
            )
