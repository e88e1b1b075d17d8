// SPDX-License-Identifier: MIT OR Apache-2.0

//! The numbered lines that test programs write: nothing lost, nothing doubled, nothing wrong.

use anyhow::{Context, Result, ensure};

/// Steps of the chain between two lines of compute.py, unless it is told otherwise.
pub const STEPS: u32 = 3000;

/// The chain of numbers that compute.py prints.
pub struct Chain {
    value: u64,
    steps: u32,
}

impl Chain {
    /// At its beginning.
    pub fn new(steps: u32) -> Self {
        Self { value: 1, steps }
    }
}

impl Iterator for Chain {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        for _ in 0..self.steps {
            self.value = self
                .value
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
        }
        Some(self.value)
    }
}

/// All lines "LINE n ..." of a whole output, in order, up to the "LAST n" that ends it. Returns how many. `rest`
/// checks what follows each number.
pub fn check<'a>(
    lines: impl Iterator<Item = &'a str>,
    mut rest: impl FnMut(&str) -> Result<()>,
) -> Result<usize> {
    let mut count = 0;
    let mut last = None;
    for line in lines {
        if let Some(words) = line.strip_prefix("LINE ") {
            let (number, more) = words.split_once(' ').unwrap_or((words, ""));
            ensure!(
                number.parse() == Ok(count),
                "line {count} was to come, and this came: {line:?}"
            );
            rest(more).with_context(|| format!("line {count}: {line:?}"))?;
            count += 1;
        } else if let Some(number) = line.strip_prefix("LAST ") {
            last = Some(number.parse::<usize>()?);
        } else {
            let innocent = line.is_empty()
                || ["READY", "PASSED", "@launch"]
                    .iter()
                    .any(|word| line.starts_with(word));
            ensure!(innocent, "a torn or foreign line: {line:?}");
        }
    }
    ensure!(
        last.map(|last| last + 1) == Some(count),
        "{count} lines came, and the end says {last:?}"
    );
    Ok(count)
}

/// [`check`] for the output of compute.py.
pub fn check_chain<'a>(lines: impl Iterator<Item = &'a str>, steps: u32) -> Result<usize> {
    let mut chain = Chain::new(steps);
    check(lines, |word| {
        let want = chain.next().map(|value| format!("{value:016x}"));
        ensure!(want.as_deref() == Some(word), "{want:?} was to come");
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Result<usize> {
        check(text.lines(), |_| Ok(()))
    }

    #[test]
    fn every_fault_shows() {
        assert_eq!(
            plain("READY\nLINE 0\nLINE 1 x\nLAST 1\nPASSED\n").unwrap(),
            2
        );
        plain("LINE 0\nLINE 2\nLAST 2\n").unwrap_err();
        plain("LINE 0\nLINE 0\nLINE 1\nLAST 1\n").unwrap_err();
        plain("LINE 0\nNE 1\nLINE 1\nLAST 1\n").unwrap_err();
        plain("LINE 0\nLINE 1\nLAST 2\n").unwrap_err();
        plain("LINE 0\nLINE 1\n").unwrap_err();
    }

    #[test]
    fn the_chain_begins_as_the_script_says() {
        let text = "LINE 0 a876024abc61d6f9\nLAST 0\n";
        assert_eq!(check_chain(text.lines(), STEPS).unwrap(), 1);
        check_chain(text.replace("0 a", "0 0").lines(), STEPS).unwrap_err();
    }
}
