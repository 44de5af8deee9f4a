"""What can go wrong, one class per thing a person can do something about.

Every message says what was asked, what is there and what to do. The HTTP status of each class is decided in one
table, in `hardloop/service/api.py`.
"""


class HardloopError(Exception):
    """The base of every error the product raises on purpose; its message is meant for a person."""


class BadInput(HardloopError):
    """Something handed in from outside is not what was asked for."""


class BadShape(BadInput):
    """An array has the wrong axes, length or range."""


class BadImage(BadInput):
    """Bytes that are not an image we accept: unreadable, empty, too large, or of a format we do not take."""


class BadAnswer(BadInput):
    """An annotation that does not fit the loop's label schema."""


class BadModel(BadInput):
    """Model files that are missing, altered, or do not hold what the loop needs."""


class BadData(BadInput):
    """A data set given by the user that cannot be used as it is."""


class BadSettings(BadInput):
    """Settings that contradict each other or miss something."""


class Missing(HardloopError):
    """Something asked for by name does not exist."""


class BlobMissing(Missing):
    """No object under that key."""


class Conflict(HardloopError):
    """The request does not fit the present state, e.g. a second training while one runs."""


class Forbidden(HardloopError):
    """The caller did not show the right secret."""


class Leakage(HardloopError):
    """A held-out sample, or a near-duplicate of one, is in the training split. The run is stopped."""


class ExportMismatch(HardloopError):
    """An exported model does not answer like the model it was exported from."""


class Interrupted(HardloopError):
    """Work ended before it was done, by no fault of the input that is known; it is taken up again a few times."""


class Busy(Conflict):
    """Somebody else is at it right now and will be done; the same request may be made again shortly."""


class Unavailable(HardloopError):
    """A service we depend on does not answer; trying again later may help."""
