//! What launchers really set, and what they never should.

use super::*;
use proptest::prelude::*;

fn of(variables: &[(&str, &str)]) -> Result<Option<Launched>, LaunchError> {
    launched(&|name| {
        variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
    })
}

fn address(variables: &[(&str, &str)]) -> Option<String> {
    of(variables).unwrap().unwrap().address.map(|address| address.to_string())
}

const TORCHRUN: [(&str, &str); 7] = [
    ("RANK", "5"),
    ("WORLD_SIZE", "8"),
    ("LOCAL_RANK", "1"),
    ("LOCAL_WORLD_SIZE", "4"),
    ("MASTER_ADDR", "node1"),
    ("MASTER_PORT", "29500"),
    ("TORCHELASTIC_RUN_ID", "run"),
];

const SLURM: [(&str, &str); 9] = [
    ("SLURM_PROCID", "5"),
    ("SLURM_STEP_NUM_TASKS", "8"),
    ("SLURM_NTASKS", "16"),
    ("SLURM_LOCALID", "1"),
    ("SLURM_NODEID", "1"),
    ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
    ("SLURM_JOB_ID", "77"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_STEP_NODELIST", "node[01-02]"),
];

#[test]
fn a_process_that_nobody_launched_is_none() {
    assert_eq!(of(&[]), Ok(None));
    assert_eq!(of(&[("RANK", ""), ("MASTER_ADDR", "node1"), ("LOCAL_RANK", "0")]), Ok(None));
}

#[test]
fn torchrun_is_understood() {
    let launched = of(&TORCHRUN).unwrap().unwrap();
    let expected = Launched {
        launcher: Launcher::Torchrun,
        rank: 5,
        world: Some(8),
        local_rank: Some(1),
        local_world: Some(4),
        job: Some("run".to_owned()),
        // Its agent holds 29500.
        address: Some("node1:29501".parse().unwrap()),
    };
    assert_eq!(launched, expected);
    let with_port = [TORCHRUN.as_slice(), &[("SHARDWRIGHT_PORT", "4000")]].concat();
    assert_eq!(address(&with_port).unwrap(), "node1:4000");
}

#[test]
fn open_mpi_is_understood() {
    let together = [
        ("OMPI_COMM_WORLD_RANK", "3"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "3"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
        ("PMIX_NAMESPACE", "prterun-node1-77@1"),
    ];
    let launched = of(&together).unwrap().unwrap();
    assert_eq!((launched.launcher, launched.rank, launched.world), (Launcher::OpenMpi, 3, Some(4)));
    let address = launched.address().unwrap();
    assert_eq!(address.host(), "127.0.0.1");
    assert!((20_000..32_768).contains(&address.port()));

    let mut apart = together;
    apart[1].1 = "8";
    let launched = of(&apart).unwrap().unwrap();
    let error = launched.address().unwrap_err();
    assert!(error.to_string().contains("--rendezvous HOST:PORT"), "{error}");
    let given = [apart.as_slice(), &[("MASTER_ADDR", "10.0.0.1"), ("SHARDWRIGHT_PORT", "4000")]].concat();
    assert_eq!(self::address(&given).unwrap(), "10.0.0.1:4000");
}

#[test]
fn mpich_is_understood() {
    let variables = [
        ("PMI_RANK", "1"),
        ("PMI_SIZE", "2"),
        ("MPI_LOCALRANKID", "1"),
        ("MPI_LOCALNRANKS", "2"),
        ("SHARDWRIGHT_PORT", "4000"),
    ];
    let launched = of(&variables).unwrap().unwrap();
    assert_eq!((launched.launcher, launched.local_rank), (Launcher::Pmi, Some(1)));
    assert_eq!(launched.address.unwrap().to_string(), "127.0.0.1:4000");
    // Nothing tells two jobs on one host apart.
    assert_eq!(address(&variables[..4]), None);
}

#[test]
fn slurm_is_understood() {
    let launched = of(&SLURM).unwrap().unwrap();
    assert_eq!((launched.launcher, launched.rank, launched.world), (Launcher::Slurm, 5, Some(8)));
    assert_eq!((launched.local_rank, launched.local_world), (Some(1), Some(4)));
    assert_eq!(launched.job.as_deref(), Some("77.0"));
    assert_eq!(launched.address().unwrap().host(), "node01");
    // Another step of the same job meets elsewhere.
    let mut other = SLURM;
    other[7].1 = "1";
    assert_ne!(address(&other), address(&SLURM));
}

#[test]
fn a_slurm_step_is_a_launch_and_a_batch_script_is_none() {
    let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "0"), ("SLURM_JOB_ID", "7")];
    assert_eq!(of(&batch), Ok(None));
    for step in ["4294967291", "4294967290"] {
        let special = [batch.as_slice(), &[("SLURM_STEP_ID", step), ("SLURM_STEP_NUM_TASKS", "1")]].concat();
        assert_eq!(of(&special), Ok(None));
    }
    // A batch script that was submitted from within a step of four tasks: it inherits what was said to one of them.
    let stale = [
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_TASKS", "4"),
        ("SLURM_STEP_TASKS_PER_NODE", "4"),
        ("SLURM_NODEID", "0"),
    ];
    let stale = [batch.as_slice(), &stale].concat();
    assert_eq!(of(&[stale.as_slice(), &[("SLURM_GTIDS", "0")]].concat()), Ok(None));
    let real = of(&[stale.as_slice(), &[("SLURM_GTIDS", "0,1,2,3")]].concat()).unwrap().unwrap();
    assert_eq!((real.rank, real.world), (0, Some(4)));
    let step = [batch.as_slice(), &[("SLURM_STEP_ID", "3")]].concat();
    assert_eq!(of(&step).unwrap().unwrap().world, Some(8));
}

#[test]
fn the_innermost_launcher_counts() {
    let both = [SLURM.as_slice(), &TORCHRUN].concat();
    assert_eq!(of(&both).unwrap().unwrap().launcher, Launcher::Torchrun);
    let pod = [TORCHRUN.as_slice(), &[("JOB_COMPLETION_INDEX", "1")]].concat();
    assert_eq!(of(&pod).unwrap().unwrap().launcher, Launcher::Torchrun);
    // srun speaks PMI; mpiexec started through srun does not number as srun does.
    let speaks = [SLURM.as_slice(), &[("PMI_RANK", "5"), ("PMI_SIZE", "8")]].concat();
    assert_eq!(of(&speaks).unwrap().unwrap().launcher, Launcher::Slurm);
    let started = [SLURM.as_slice(), &[("PMI_RANK", "9"), ("PMI_SIZE", "16")]].concat();
    let launched = of(&started).unwrap().unwrap();
    assert_eq!((launched.launcher, launched.rank), (Launcher::Pmi, 9));
}

#[test]
fn an_indexed_job_is_understood() {
    let index = [("JOB_COMPLETION_INDEX", "3")];
    let launched = of(&index).unwrap().unwrap();
    assert_eq!((launched.launcher, launched.rank, launched.world), (Launcher::Kubernetes, 3, None));
    assert!(matches!(launched.address(), Err(LaunchError::NoAddress { rank: 3, .. })));
    let found = [index.as_slice(), &[("MASTER_ADDR", "job-0.svc")]].concat();
    assert_eq!(address(&found).unwrap(), "job-0.svc:29401");
}

#[test]
fn a_rank_alone_needs_no_address() {
    let launched = of(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap().unwrap();
    assert_eq!((launched.world, launched.address), (Some(1), None));
}

#[test]
fn what_cannot_be_is_named() {
    let cases: [(&[(&str, &str)], &str); 12] = [
        (&[("RANK", "1")], "RANK is set, but WORLD_SIZE is not"),
        (&[("WORLD_SIZE", "1")], "WORLD_SIZE is set, but RANK is not"),
        (&[("RANK", "one"), ("WORLD_SIZE", "2")], "RANK is `one`, which is no number"),
        (&[("RANK", "-1"), ("WORLD_SIZE", "2")], "RANK is `-1`, which is no number"),
        (
            &[("RANK", "2"), ("WORLD_SIZE", "2")],
            "RANK is 2 and WORLD_SIZE is 2, but the first should be less",
        ),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "0")],
            "RANK is 0 and WORLD_SIZE is 0, but the first should be less",
        ),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "1")],
            "LOCAL_RANK is 1 and LOCAL_WORLD_SIZE is 1, but the first should be less",
        ),
        (
            &[("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("MPI_LOCALNRANKS", "3")],
            "MPI_LOCALNRANKS is 3 and PMI_SIZE is 2, but the first should be no more",
        ),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a b"), ("MASTER_PORT", "80")],
            "MASTER_ADDR: `a b:81` is no address",
        ),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "65535")],
            "MASTER_PORT is `65535`, which is no port with one after it",
        ),
        (
            &[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_STEP_NODELIST", "node[")],
            "SLURM_STEP_NODELIST is `node[`, which is no list of hosts",
        ),
        (
            &[
                ("SLURM_PROCID", "0"),
                ("SLURM_STEP_NUM_TASKS", "2"),
                ("SLURM_NODEID", "2"),
                ("SLURM_STEP_TASKS_PER_NODE", "1(x2)"),
            ],
            "SLURM_STEP_TASKS_PER_NODE is `1(x2)`, which is no list of tasks",
        ),
    ];
    for (variables, message) in cases {
        let error = of(variables).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}\nwanted: {message}");
    }
}

/// All variables that are looked at.
const NAMES: [&str; 27] = [
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMIX_NAMESPACE",
    "PMI_RANK",
    "PMI_SIZE",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NODELIST",
    "JOB_COMPLETION_INDEX",
    "SHARDWRIGHT_PORT",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_environment_is_a_launch_or_none_or_an_error(
        values in prop::collection::vec(
            prop::option::weighted(0.3, prop_oneof![4 => "[0-9]{1,2}", 1 => any::<String>(), 1 => "[a-z\\[\\],0-9-]{1,9}"]),
            NAMES.len(),
        )
    ) {
        let lookup = |name: &str| {
            NAMES.iter().position(|known| *known == name).and_then(|at| values[at].clone())
        };
        if let Ok(Some(launched)) = launched(&lookup) {
            prop_assert!(launched.world.is_none_or(|world| launched.rank < world));
            prop_assert!(launched.local_world.zip(launched.local_rank).is_none_or(|(of, at)| at < of));
            prop_assert!(launched.world.zip(launched.local_world).is_none_or(|(all, here)| here <= all));
        }
    }
}
