"""What can go wrong in the client, as one tree.

ClientError
├── EndpointError    an address that is not a ZeroMQ address
└── WireError        bytes that are not a message of this schema
    └── SchemaError  a message of another schema
"""


class ClientError(Exception):
    """Base of everything that the client raises on purpose."""


class EndpointError(ClientError):
    """An address that is not a ZeroMQ address."""


class WireError(ClientError):
    """Bytes that are not a message of this schema."""


class SchemaError(WireError):
    """A message of another schema."""
