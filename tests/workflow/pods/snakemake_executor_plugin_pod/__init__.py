"""Jobs as pods have them: nothing in common with who started them but a bucket.

Does what Snakemake's executor for Kubernetes does, but for the cluster: every job gets an empty
folder and an environment with nothing in it but what was declared, gets the Snakefile out of the
bucket, and leaves its outputs there. With `PODS_HIDE` (a folder) that folder is empty for it.
"""

import os
import shlex
import subprocess
import tempfile
from collections.abc import AsyncGenerator

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=True,
    job_deploy_sources=True,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=False,
    auto_deploy_default_storage_provider=False,
)


class Executor(RemoteExecutor):
    def __post_init__(self) -> None:
        self._next_seconds_between_status_checks = 0.2

    def run_job(self, job: JobExecutorInterface) -> None:
        folder = tempfile.mkdtemp(prefix=f"{job.name}-", dir=os.environ["PODS"])
        image = {name: os.environ[f"PODS_{name}"] for name in ("PATH", "PYTHONPATH")}
        command = self.format_job_exec(job)
        if hidden := os.environ.get("PODS_HIDE"):
            mount = f"mount -t tmpfs none {shlex.quote(hidden)} && {command}"
            arguments = ["unshare", "--mount", "/bin/sh", "-c", mount]
        else:
            arguments = ["/bin/sh", "-c", command]
        with open(f"{folder}.log", "wb") as log:
            pod = subprocess.Popen(
                arguments,
                cwd=folder,
                env={**image, "HOME": folder, "LC_ALL": "C.UTF-8", **self.envvars()},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.report_job_submission(
            SubmittedJobInfo(job=job, external_jobid=str(pod.pid), aux={"pod": pod})
        )

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        for info in active_jobs:
            status = info.aux["pod"].poll()
            if status is None:
                yield info
            elif status == 0:
                self.report_job_success(info)
            else:
                self.report_job_error(info)

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        for info in active_jobs:
            info.aux["pod"].kill()
