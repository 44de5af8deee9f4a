"""The words every room shares: records, ports, ids, errors and the blob store."""
