"""Undocumented behaviour of Great Expectations that `gx_internals` relies on."""

import json
from importlib.metadata import version

import pandas as pd
import pytest

from validation.gate import gx_internals

HOSTILE = "<script>alert(1)</script>"
INSTALLED_VERSION = version("great-expectations")
ODD_NAME = "$HOME ${RUN} $ 50%20off what?x=1 #é'\"[x]"  # of a folder: must be taken literally
UPGRADED = (
    f"Great Expectations {INSTALLED_VERSION} differs from the tested {gx_internals.TESTED_VERSION}; "
    "adapt validation/gate/gx_internals.py"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a Data Docs site with one failing check, written through `gx_internals` alone."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    folder = tmp_path_factory.mktemp("data_docs") / ODD_NAME
    context = gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            data_docs_sites={"data_docs": gx_internals.data_docs_site(folder)},
            analytics_enabled=False,
            progress_bars=gx_internals.disabled_progress_bars(),
        ),
    )
    expectation = gx.expectations.ExpectColumnValuesToBeInSet(column="text", value_set=["a"])
    suite = context.suites.add(gx.ExpectationSuite(name="suite", expectations=[expectation]))
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all")
    definition = gx.ValidationDefinition(name="suite", data=batch, suite=suite)
    context.validation_definitions.add(definition).run(
        batch_parameters={"dataframe": pd.DataFrame({"text": [HOSTILE, "a"]})}
    )
    gx_internals.transform_stored_results(
        context, lambda result: json.loads(json.dumps(result).replace(HOSTILE, "harmless value"))
    )
    context.build_data_docs()
    return folder


def test_progress_bars_stay_off(folder, capfd):
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = gx_internals.disabled_progress_bars()
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch(
        {"dataframe": pd.DataFrame({"text": ["a"]})}
    )
    capfd.readouterr()
    batch.validate(gx.expectations.ExpectColumnValuesToNotBeNull(column="text"))
    assert capfd.readouterr().err == "", UPGRADED


def test_transformed_results_replace_data_values_in_pages(folder):
    page = (folder / gx_internals.results_page(folder, "suite")).read_text()
    assert "harmless value" in page and HOSTILE not in page, UPGRADED


def test_pages_and_static_folder_are_where_expected(folder):
    assert (folder / gx_internals.results_page(folder, "suite")).is_file(), UPGRADED
    assert (folder / gx_internals.expectations_page("suite")).is_file(), UPGRADED
    assert (folder / gx_internals.STATIC_FOLDER).is_dir(), UPGRADED


def test_active_markup_is_recognized(folder):
    page = (folder / gx_internals.results_page(folder, "suite")).read_text()
    assert "<script" in page and page.count("<head>") == 1, UPGRADED
    clean = gx_internals.remove_active_markup(page)
    for markup in ("<script", "<img", "<link", "<style", " style=", "onclick", "https://", "//cdn"):
        assert markup not in clean.replace('href="https://', ""), f"{markup}: {UPGRADED}"
    assert gx_internals.insert_in_head(clean, "<title>t</title>").count("<head><title>t</title>") == 1
