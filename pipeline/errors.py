"""Everything that can go wrong in the world outside, as one tree. What the caller got wrong is a `ValueError`.

    DegrainError
    ├── PhotoRejected        one photo cannot be used; becomes a row of the index with this message as its reason
    │   └── PhotoKept        its result cannot be written faithfully; it is copied as it is
    ├── StorageError         a store could not be read or written
    │   ├── ObjectRefused    this one object cannot be read or held; the store works otherwise
    │   │   └── ObjectMissing  there is no such object
    │   └── ObjectExists     a create-only write found the object already there
    ├── TargetInUse          another run holds the lease of the target
    ├── RegistryError        what lies in a registry of weights is not, or no longer, what it says
    ├── PromotionRefused     weights may not have the name that they were to have
    ├── ImageSetError        what lies at the target is not, or no longer, a sound image set
    └── RunFailed            a run had to stop; what is committed stays
        └── RunStopped       … by what it was told to stop at, and it would again

Every class takes exactly one message, or it would not survive the trip back from a Ray worker.
"""

# How a process ends, of the command line or of a job: well, by an error of this tree, by a `ValueError`, interrupted.
EXIT_OK, EXIT_FAILED, EXIT_CALL, EXIT_INTERRUPTED = 0, 1, 2, 130


class DegrainError(Exception):
    """Base of the tree. The message is one line that names the thing, the value seen, and what to do."""


class PhotoRejected(DegrainError):
    """One photo cannot be used. The message is the reason that a person reads in the index."""


class CodecFault(PhotoRejected):
    """A codec raised what it should not: a fault of ours or of its library, which costs one photo and not the run."""


class PhotoKept(PhotoRejected):
    """A photo's result cannot be written faithfully: it is copied byte for byte, for this reason."""


class StorageError(DegrainError):
    """A store could not be read or written, after the retries that it deserved."""


class ObjectRefused(StorageError):
    """This one object cannot be read or held (forbidden, a folder, a name too long), while the store works."""


class ObjectMissing(ObjectRefused):
    """There is no such object."""


class ObjectExists(StorageError):
    """A create-only write found the object already there: someone else was first."""


class RegistryError(DegrainError):
    """What lies in a registry of weights is not, or no longer, what it says."""


class PromotionRefused(DegrainError):
    """Weights may not have the name that they were to have: they score worse, or someone else was first."""


class ImageSetError(DegrainError):
    """What lies at the target is not, or no longer, a sound image set."""


class TargetInUse(DegrainError):
    """Another run holds the lease of the target. The message says who, and until when."""


class RunFailed(DegrainError):
    """A run had to stop. What is committed stays, and the next run does the rest."""


class RunStopped(RunFailed):
    """A run had to stop where it was told to, and would stop there again: a decision, and no failure that passes."""


def may_pass(error: BaseException) -> bool:
    """Whether the same job may go well if it is done once more.

    A wrong call stays wrong, a decision stays what it is, and the same steps come to the same loss.
    """
    return not isinstance(error, ValueError | FloatingPointError | RunStopped | PromotionRefused)
