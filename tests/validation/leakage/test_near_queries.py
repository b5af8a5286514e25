"""Samples of queries."""

import pyarrow as pa

from validation.leakage.near_queries import QuerySample


def test_few_queries_are_all_compared():
    queries, following = QuerySample(), QuerySample()
    queries.add(pa.array(["a", None, "b"]))
    queries.add(pa.array(["b", "c"]))
    following.add(pa.array(["d", "a"]))
    queries.merge(following)
    found, share = queries.queries()
    assert (found.to_pylist(), share) == (["a", "b", "c", "d"], 1)
