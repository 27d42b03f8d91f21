//! Writes a file around the page cache: through a few aligned buffers, of which some are filled while
//! others are written.
//!
//! The kernel takes such writes only in whole blocks, from aligned memory, and not on every file
//! system. Wherever it does not, the same bytes go through the page cache, slower but no different.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::io::Errno;

use super::publish::is_unsupported;
use crate::limits::room;

/// What places in the file and in memory must be multiples of: no medium asks for more, as far as
/// is known; for one that does, there is the page cache.
const BLOCK: usize = 4096;

/// Bytes that one call writes: enough to keep a medium busy.
const BUFFER: usize = 4 << 20;

/// One that is filled, one for each thread that writes, and one in between.
const BUFFERS: usize = 4;

/// So many writes are under way at a time.
const WRITERS: usize = 2;

/// Writes a file from its start on.
#[derive(Debug)]
pub(super) struct DirectWriter {
    file: Arc<File>,
    /// The buffer that is being filled, and where in the file it will be.
    filling: Option<Buffer>,
    offset: u64,
    empty: Receiver<Buffer>,
    /// How many buffers there are by now.
    buffers: usize,
    full: Option<Sender<(u64, Buffer)>>,
    failure: Failure,
    writers: Vec<JoinHandle<()>>,
}

/// The first write that failed, if any did.
type Failure = Arc<Mutex<Option<io::Error>>>;

impl DirectWriter {
    /// Begins at the start of the file; `None` where it cannot be written to in this way, or there
    /// is no memory for a buffer, or no thread to be had.
    pub(super) fn start(file: &File) -> Option<Self> {
        let file = Arc::new(file.try_clone().ok()?);
        let first = Buffer::new()?;
        bypass_cache(&file).ok()?;
        let (full, queue) = channel();
        let (done, empty) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let failure = Failure::default();
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            let (file, failure) = (Arc::clone(&file), Arc::clone(&failure));
            let (queue, done) = (Arc::clone(&queue), done.clone());
            let writer = thread::Builder::new().name("safeshard-write".into());
            let work = move || write_queue(&file, &queue, &done, &failure);
            writers.extend(writer.spawn(work));
        }
        if writers.is_empty() {
            use_cache(&file).ok()?;
            return None;
        }
        Some(Self {
            file,
            filling: Some(first),
            offset: 0,
            empty,
            buffers: 1,
            full: Some(full),
            failure,
            writers,
        })
    }

    /// Takes the bytes in; waits where all buffers are full.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut buffer = match self.filling.take() {
                Some(buffer) => buffer,
                None => self.next_buffer()?,
            };
            bytes = buffer.fill(bytes);
            match buffer.room() {
                0 => self.queue(buffer)?,
                _ => self.filling = Some(buffer),
            }
        }
        Ok(())
    }

    /// Waits until everything is written.
    pub(super) fn finish(mut self) -> io::Result<()> {
        // The last bytes may be no whole block, which only the page cache takes.
        let mut last = Vec::new();
        if let Some(mut buffer) = self.filling.take() {
            last = buffer.cut_to_blocks();
            self.queue(buffer)?;
        }
        self.wait();
        self.check()?;
        use_cache(&self.file)?;
        write_at(&self.file, &last, self.offset)
    }

    /// Hands the next bytes of the file to whichever thread is free first.
    fn queue(&mut self, buffer: Buffer) -> io::Result<()> {
        let offset = self.offset;
        self.offset += buffer.bytes().len() as u64;
        let queue = self.full.as_ref();
        let queued = queue.and_then(|queue| queue.send((offset, buffer)).ok());
        self.check()?;
        queued.ok_or_else(no_writers)
    }

    fn next_buffer(&mut self) -> io::Result<Buffer> {
        if let Ok(buffer) = self.empty.try_recv() {
            return Ok(buffer);
        }
        // Where there is no memory for another one, those that there are have to do.
        if self.buffers < BUFFERS
            && let Some(buffer) = Buffer::new()
        {
            self.buffers += 1;
            return Ok(buffer);
        }
        self.empty.recv().map_err(|_| no_writers())
    }

    fn check(&self) -> io::Result<()> {
        lock(&self.failure).take().map_or(Ok(()), Err)
    }

    /// Lets the threads finish what is queued.
    fn wait(&mut self) {
        self.full = None;
        for writer in self.writers.drain(..) {
            let _nothing_in_them_panics = writer.join();
        }
    }
}

impl Drop for DirectWriter {
    /// No thread outlives the writer: after an error, the file is as good as gone.
    fn drop(&mut self) {
        self.wait();
    }
}

fn write_queue(
    file: &File,
    queue: &Mutex<Receiver<(u64, Buffer)>>,
    done: &Sender<Buffer>,
    failure: &Mutex<Option<io::Error>>,
) {
    loop {
        // The lock is held while waiting: whoever has it is the next one to get a buffer.
        let next = lock(queue).recv();
        let Ok((offset, mut buffer)) = next else {
            return;
        };
        if let Err(error) = write_at(file, buffer.bytes(), offset) {
            lock(failure).get_or_insert(error);
        }
        buffer.clear();
        let _nobody_waits_after_the_last = done.send(buffer);
    }
}

/// Writes all bytes; through the page cache as soon as the kernel wants it so.
fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    let mut refused = false;
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            // After part of a block, the rest is not aligned any more, and is refused below.
            Ok(written) => {
                bytes = bytes.get(written..).unwrap_or_default();
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) if is_unsupported(errno) && !refused => {
                refused = true;
                use_cache(file)?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Aligned memory that is filled front to back.
#[derive(Debug)]
struct Buffer {
    memory: Vec<u8>,
    /// Where the aligned part begins.
    start: usize,
}

impl Buffer {
    /// `None` where there is not enough memory.
    fn new() -> Option<Self> {
        // A little more than needed, so that an aligned part of the right size is in it wherever the
        // allocator puts it.
        let mut memory = room::<u8>(BUFFER + BLOCK).ok()?;
        let start = memory.as_ptr().align_offset(BLOCK).min(BLOCK);
        memory.resize(start, 0);
        Some(Self { memory, start })
    }

    fn bytes(&self) -> &[u8] {
        self.memory.get(self.start..).unwrap_or_default()
    }

    fn room(&self) -> usize {
        BUFFER.saturating_sub(self.bytes().len())
    }

    fn clear(&mut self) {
        self.memory.truncate(self.start);
    }

    /// Takes in what there is room for; returns the rest.
    fn fill<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let (taken, rest) = bytes.split_at(bytes.len().min(self.room()));
        self.memory.extend_from_slice(taken);
        rest
    }

    /// Takes out what lies behind the last whole block.
    fn cut_to_blocks(&mut self) -> Vec<u8> {
        let len = self.bytes().len();
        self.memory.split_off(self.start + len - len % BLOCK)
    }
}

#[cfg(target_os = "linux")]
fn bypass_cache(file: &File) -> rustix::io::Result<()> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    fcntl_setfl(file, fcntl_getfl(file)? | OFlags::DIRECT)
}

#[cfg(target_os = "linux")]
fn use_cache(file: &File) -> rustix::io::Result<()> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    fcntl_setfl(file, fcntl_getfl(file)? - OFlags::DIRECT)
}

#[cfg(not(target_os = "linux"))]
fn bypass_cache(_file: &File) -> rustix::io::Result<()> {
    Err(Errno::NOTSUP)
}

#[cfg(not(target_os = "linux"))]
fn use_cache(_file: &File) -> rustix::io::Result<()> {
    Ok(())
}

fn no_writers() -> io::Error {
    io::Error::other("the writing threads ended")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
