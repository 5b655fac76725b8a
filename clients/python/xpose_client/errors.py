"""The errors of the client, as one tree.

ClientError
├── EndpointError    an address that is not a ZeroMQ address
├── KeyFileError     a key file that cannot be used
├── ControlError     a request that the pipeline refused
├── NoAnswerError    a request that was not answered in time
└── WireError        bytes that are not a message of this schema
    └── SchemaError  a message of another schema
"""


class ClientError(Exception):
    """Base of everything that the client raises on purpose."""


class EndpointError(ClientError):
    """An address that is not a ZeroMQ address."""


class KeyFileError(ClientError):
    """A key file that cannot be read, has other contents, or can be read by others."""


class ControlError(ClientError):
    """A request that the pipeline refused; it has changed nothing."""


class NoAnswerError(ClientError):
    """A request that was not answered in time."""


class WireError(ClientError):
    """Bytes that are not a message of this schema."""


class SchemaError(WireError):
    """A message of another schema."""
