"""Daily scoring of the day before by Airflow.

The workers have this project installed and reach the Ray cluster. Its address and token are in their
environment: RAY_API_SERVER_ADDRESS, RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH. A backfill scores missed days, one
after the other.
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
RETRYABLE = 3  # exit code of a failure that may pass; a retry repeats no finished work


def score(logical_date: str) -> None:
    """Score one day.

    Raises:
        AirflowException: The command failed; Airflow retries it.
        AirflowFailException: The command failed and a retry would not help.
    """
    code = subprocess.run([*COMMAND.split(), "--logical-date", logical_date]).returncode
    if code:
        error = AirflowException if code == RETRYABLE else AirflowFailException
        raise error(f"relevance failed: exit code {code}; see the output above")


with DAG(
    "relevance_score",
    # {{ ds }} is the first day of the interval: the day before the run
    schedule=CronDataIntervalTimetable("15 3 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,  # a second run would only wait for the scoring lease
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=10),
        "execution_timeout": timedelta(hours=6),
    },
):
    PythonOperator(task_id="score", python_callable=score, op_kwargs={"logical_date": "{{ ds }}"})
