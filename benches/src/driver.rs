//! Runs all contenders of a job in turn, each sample in a process of its own.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::digest::Digest;
use crate::job::{Contender, Job, Opens, Run};
use crate::machine::Machine;
use crate::memory::Resident;
use crate::random::Random;
use crate::result::{ContenderResult, JobResult};
use crate::sample::Measured;
use crate::{Folders, Result, cache, data, jobs, report};

/// How often a watched run's memory is looked at.
const LOOK: Duration = Duration::from_millis(1);

pub(crate) struct Options {
    jobs: Vec<&'static Job>,
    samples: usize,
    /// Where results go, below the work folder: quick ones do not reach the report.
    results: &'static str,
    python: Option<PathBuf>,
}

impl Options {
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self {
            jobs: Vec::new(),
            samples: 9,
            results: "results",
            python: None,
        };
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            let mut value = || words.next().copied().ok_or(format!("{word} needs a value"));
            match word {
                // Added by xtask.
                "--python" => options.python = Some(value()?.into()),
                "--samples" => options.samples = value()?.parse()?,
                "--quick" => (options.samples, options.results) = (2, "quick"),
                word if word.starts_with('-') => {
                    return Err(format!("unknown option {word}; see --help").into());
                }
                name => options.jobs.push(jobs::find(name)?),
            }
        }
        if options.samples == 0 {
            return Err("at least one sample".into());
        }
        if options.jobs.is_empty() {
            options.jobs = jobs::runnable().collect();
        }
        Ok(options)
    }
}

pub(crate) fn run(folders: &Folders, options: &Options) -> Result {
    let machine = Machine::this(folders, options.python.as_deref())?;
    let results = folders.work.join(options.results);
    fs::create_dir_all(&results)?;
    let mut failed = Vec::new();
    for job in &options.jobs {
        match Race::new(folders, options, job).and_then(|race| race.run(&machine)) {
            Ok(result) => {
                result.write(&results.join(format!("{}.json", job.name)))?;
                println!("{}", report::text(job, &result));
            }
            // The other jobs are worth running all the same.
            Err(why) => {
                eprintln!("bench: {}: {why}", job.name);
                failed.push(job.name);
            }
        }
    }
    match failed.as_slice() {
        [] => Ok(()),
        failed => Err(format!("failed: {}", failed.join(", ")).into()),
    }
}

/// One job being measured.
struct Race<'r> {
    job: &'static Job,
    options: &'r Options,
    files: Vec<PathBuf>,
    path: PathBuf,
    script: PathBuf,
    /// The range of what the page cache held.
    cached: Option<(f64, f64)>,
}

impl<'r> Race<'r> {
    fn new(folders: &Folders, options: &'r Options, job: &'static Job) -> Result<Self> {
        let path = job.data.make(&folders.data())?;
        Ok(Self {
            job,
            options,
            files: data::files(&path)?,
            path,
            script: folders.package.join("python/rivals.py"),
            cached: None,
        })
    }

    fn run(mut self, machine: &Machine) -> Result<JobResult> {
        let contenders = self.job.contenders;
        let rounds = self.options.samples * self.job.samples_times;
        eprintln!(
            "bench: {}: {} contenders, {rounds} samples",
            self.job.name,
            contenders.len()
        );

        cache::drop_all(&self.files)?;
        // Outside the timing: do they produce the same, and what memory does it take?
        let mut product = None;
        let mut results = Vec::new();
        for contender in contenders {
            let (measured, watched, digest) = self.watch(contender)?;
            match product {
                None => product = Some(digest),
                Some(product) if product == digest => {}
                Some(product) => {
                    return Err(format!(
                        "{} produced {digest:?}, {} {product:?}",
                        contender.name, contenders[0].name
                    )
                    .into());
                }
            }
            results.push(ContenderResult {
                name: contender.name.to_owned(),
                seconds: Vec::new(),
                user: Vec::new(),
                system: Vec::new(),
                resident: measured.resident.max(watched),
                files_opened: self.count_opens(contender)?,
            });
        }

        let mut random = Random::of(self.job.name);
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        for _ in 0..rounds {
            random.shuffle(&mut order);
            for &turn in &order {
                let measured = self.sample(&contenders[turn])?;
                let result = &mut results[turn];
                result.seconds.push(measured.seconds);
                result.user.push(measured.user);
                result.system.push(measured.system);
                result.resident.peak = result.resident.peak.max(measured.resident.peak);
            }
        }
        Ok(JobResult {
            job: self.job.name.to_owned(),
            command: format!(
                "cargo xtask bench {} --samples {}",
                self.job.name, self.options.samples
            ),
            machine: machine.clone(),
            product: product.ok_or("no contender")?,
            cached: self.cached,
            contenders: results,
        })
    }

    /// A sample that counts.
    fn sample(&mut self, contender: &Contender) -> Result<Measured> {
        let mut process = Process::start(self.command(contender, &[])?)?;
        self.release(&mut process)?;
        let measured = process.line()?;
        process.end()?;
        Ok(serde_json::from_str(&measured)?)
    }

    /// A sample that does not count, because its memory is looked at all the time and what it
    /// produced is read afterwards.
    fn watch(&mut self, contender: &Contender) -> Result<(Measured, Resident, Digest)> {
        let mut process = Process::start(self.command(contender, &["--check"])?)?;
        self.release(&mut process)?;
        let (measured, watched) = process.watched_line()?;
        let digest = process.line()?;
        process.end()?;
        Ok((
            serde_json::from_str(&measured)?,
            watched,
            serde_json::from_str(&digest)?,
        ))
    }

    /// How many of the job's files a contender opens; where `strace` is there to tell.
    fn count_opens(&mut self, contender: &Contender) -> Result<Option<u64>> {
        if self.job.opens == Opens::Ignored {
            return Ok(None);
        }
        let trace = env::temp_dir().join(format!("safeshard-bench-{}", std::process::id()));
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-qq", "-e", "trace=open,openat", "-o"])
            .arg(&trace);
        let command = self.command(contender, &[])?;
        strace.arg(command.get_program()).args(command.get_args());
        let Ok(mut process) = Process::start(strace) else {
            return Ok(None);
        };
        self.release(&mut process)?;
        process.line()?;
        process.end()?;
        let text = fs::read_to_string(&trace)?;
        fs::remove_file(&trace)?;
        let folder = format!("\"{}/", self.path.display());
        let opened = |line: &&str| line.contains(&folder) && !line.contains(" = -1 ");
        Ok(Some(text.lines().filter(opened).count() as u64))
    }

    /// Lets a prepared process run, with the page cache as the job wants it.
    fn release(&mut self, process: &mut Process) -> Result {
        if process.line()? != "ready" {
            return Err("a contender did not get ready".into());
        }
        if let Some(part) = cache::prepare(&self.files, self.job.cache)? {
            let (least, most) = self.cached.unwrap_or((part, part));
            self.cached = Some((least.min(part), most.max(part)));
        }
        process.go()
    }

    fn command(&self, contender: &Contender, more: &[&str]) -> Result<Command> {
        let mut command;
        match contender.run {
            Run::Rust(_) => {
                command = Command::new(env::current_exe()?);
                command.args(["run", self.job.name, contender.name]);
                // For commands in Python.
                let python = self.options.python.iter();
                command.envs(python.map(|python| ("SAFESHARD_BENCH_PYTHON", python)));
            }
            Run::Python(function, env) => {
                let python = self.options.python.as_ref();
                command = Command::new(python.ok_or("--python is needed for the Python rivals")?);
                command.arg(&self.script).arg(function).arg(&self.path);
                command
                    .arg(self.job.touch.to_string())
                    .envs(env.iter().copied());
            }
        }
        command.args(more);
        Ok(command)
    }
}

/// A child that waits for us and then tells what it measured.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Process {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or("no pipe")?;
        let lines = Some(BufReader::new(stdout).lines());
        Ok(Self {
            child,
            stdin,
            lines,
        })
    }

    fn go(&mut self) -> Result {
        self.stdin.as_mut().ok_or("no pipe")?.write_all(b"go\n")?;
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let line = self.lines.as_mut().and_then(Iterator::next);
        Ok(line.ok_or("a contender ended early")??)
    }

    /// The next line, and the highest memory that the process had until then.
    fn watched_line(&mut self) -> Result<(String, Resident)> {
        let id = self.child.id().to_string();
        let before = Resident::of(&id)?;
        let mut lines = self.lines.take().ok_or("no pipe")?;
        let (sender, receiver) = mpsc::channel();
        let reader = thread::spawn(move || {
            let line = lines.next();
            // Nobody listens any more only if the run has failed.
            let _nobody = sender.send(line);
            lines
        });
        let mut highest = Resident::default();
        let line = loop {
            match receiver.recv_timeout(LOOK) {
                Ok(line) => break line,
                Err(RecvTimeoutError::Timeout) => {
                    let mut now = Resident::with_children(&id)?.above(before);
                    now.peak = 0; // includes what was touched before
                    highest = highest.max(now);
                }
                Err(RecvTimeoutError::Disconnected) => break None,
            }
        };
        self.lines = Some(reader.join().map_err(|_| "a reader panicked")?);
        Ok((line.ok_or("a contender ended early")??, highest))
    }

    fn end(mut self) -> Result {
        self.stdin = None;
        match self.child.wait()? {
            status if status.success() => Ok(()),
            status => Err(format!("a contender failed: {status}").into()),
        }
    }
}

/// After a failure nobody waits for it, and it must not run beside what is measured next.
impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
