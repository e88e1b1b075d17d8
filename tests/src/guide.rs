// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the guide for administrators has typed beside `ssictl`, for tests that run just that.

use anyhow::{Context, Result};

const GUIDE: &str = include_str!("../../Documentation/admin/cluster.md");

/// The commands of each block of a section, as they stand there, without those of `ssictl`.
fn blocks(section: &str) -> Vec<Vec<&'static str>> {
    let heading = format!("## {section}");
    let lines = GUIDE.lines().skip_while(|line| *line != heading).skip(1);
    let lines = lines.take_while(|line| !line.starts_with("## "));
    let mut blocks = vec![Vec::new()];
    for line in lines {
        match (line.strip_prefix("    # "), blocks.last_mut()) {
            (Some(typed), Some(block)) if !typed.starts_with("ssictl ") => block.push(typed),
            (None, Some(block)) if !line.starts_with("    ") && !block.is_empty() => {
                blocks.push(Vec::new());
            }
            _ => {}
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

/// What is typed in a block of a section, counted from 0: a script that ends with the first command that fails.
pub(crate) fn script(section: &str, block: usize) -> Result<String> {
    let all = blocks(section);
    let lines = all
        .get(block)
        .with_context(|| format!("the guide has no commands in block {block} of {section:?}"))?;
    Ok(format!("set -e\n{}", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that the guide has typed is run by the tests `systemd-install`, `-damaged`, `-restore` and `-upgrade`.
    #[test]
    fn every_block_is_known() {
        let headings = GUIDE.lines().filter_map(|line| line.strip_prefix("## "));
        let counts = headings.map(|section| (section, blocks(section).len()));
        let some: Vec<_> = counts.filter(|(_, count)| *count > 0).collect();
        let known = [
            ("Set up", 1),
            ("A node does not start", 1),
            ("Back up", 2),
            ("Upgrade", 1),
        ];
        assert_eq!(some, known);
        let first = script("Back up", 0).unwrap();
        let wanted = "set -e\nsystemctl stop ssid\ntar -C /var/lib/ssid -cf ssid.tar .\nsystemctl start ssid";
        assert_eq!(first, wanted);
        assert!(script("Back up", 2).is_err() && script("No such", 0).is_err());
    }
}
