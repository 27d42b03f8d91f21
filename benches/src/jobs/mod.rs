//! The comparisons, one a file, in the order of the report.

use crate::Result;
use crate::job::Job;

mod cast;
mod cold;
mod command;
mod common;
mod header;
mod load_into;
mod load_warm;
mod ndarray;
mod one_of_100;
mod save;
mod slice;
mod tch;
mod techniques;
mod var_builder;

pub(crate) static ALL: &[Job] = &[
    load_warm::ONE_FILE,
    load_warm::SHARDS,
    load_into::JOB,
    var_builder::BERT,
    var_builder::LLAMA,
    cast::JOB,
    header::OF_10K,
    header::OF_200K,
    one_of_100::JOB,
    slice::DIM_0,
    slice::DIM_1,
    slice::MIDDLE,
    cold::JOB,
    save::ONE_FILE,
    save::SHARDS,
    save::DURABLE,
    ndarray::VIEWS,
    ndarray::SMALL_VIEWS,
    ndarray::LOAD,
    ndarray::LOAD_BF16,
    ndarray::SAVE,
    tch::LOAD,
    tch::MAP,
    tch::MAP_TOUCHED,
    tch::VAR_STORE,
    tch::SAVE,
    command::RESHARD,
    command::MERGE,
    command::INSPECT,
    command::DIFF,
    command::DIGEST,
    techniques::WARM,
    techniques::COLD,
];

/// Those that this program can run.
pub(crate) fn runnable() -> impl Iterator<Item = &'static Job> {
    ALL.iter()
        .filter(|job| cfg!(feature = "tch") || !job.name.starts_with("tch-"))
}

pub(crate) fn find(name: &str) -> Result<&'static Job> {
    let found = ALL.iter().find(|job| job.name == name);
    Ok(found.ok_or_else(|| {
        let names: Vec<_> = ALL.iter().map(|job| job.name).collect();
        format!("no job `{name}`; there are {}", names.join(", "))
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Measure, Side};

    #[test]
    fn every_target_names_contenders_of_its_job() {
        for job in ALL {
            for target in job.targets {
                let ours = job.contender(target.ours).unwrap();
                assert!(ours.side == Side::Ours, "{}", job.name);
                assert!(target.goal <= target.must, "{}", job.name);
                if let Measure::TimeOver(rival) = target.measure {
                    assert!(
                        job.contender(rival).unwrap().side != Side::Ours,
                        "{}",
                        job.name
                    );
                }
            }
        }
    }

    #[test]
    fn names_are_unique() {
        for (position, job) in ALL.iter().enumerate() {
            assert!(ALL[..position].iter().all(|other| other.name != job.name));
            for (position, contender) in job.contenders.iter().enumerate() {
                let before = &job.contenders[..position];
                assert!(before.iter().all(|other| other.name != contender.name));
            }
        }
    }
}
