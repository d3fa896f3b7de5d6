//! The demonstration (comes with its provider in the next commit).
pub async fn run() -> anyhow::Result<()> { anyhow::bail!("not yet") }
