"""Each day's rows by Airflow, the day after, on workers that have this project installed and reach the Ray
cluster.

The cluster's address and token are the worker's own settings: RAY_API_SERVER_ADDRESS, RAY_AUTH_MODE,
RAY_AUTH_TOKEN_PATH. A backfill scores days that were missed, one after the other.
"""

import subprocess
from datetime import datetime, timedelta

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, CronDataIntervalTimetable
from airflow.sdk.exceptions import AirflowException, AirflowFailException

COMMAND = (
    "relevance submit score --config /etc/relevance/production.yaml --set name=production-scoring --set "
    "data.to_score=/storage/rows/{date}"
)
WORTH_A_RETRY = 3  # the exit code of what may succeed later; a retry does nothing twice


def score(logical_date: str) -> None:
    """Score one day. AirflowFailException, which Airflow does not retry: it wants a person."""
    code = subprocess.run([*COMMAND.split(), "--logical-date", logical_date]).returncode
    if code:
        raise (AirflowException if code == WORTH_A_RETRY else AirflowFailException)(
            f"relevance ended with exit code {code}, see above"
        )


with DAG(
    "relevance_score",
    # {{ ds }} is the day an interval begins: the day before the run
    schedule=CronDataIntervalTimetable("15 3 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,  # a second one would wait for the first one's lease, then give up
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=10),
        "execution_timeout": timedelta(hours=6),
    },
):
    PythonOperator(task_id="score", python_callable=score, op_kwargs={"logical_date": "{{ ds }}"})
