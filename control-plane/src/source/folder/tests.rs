use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;

use crate::source::{Content, SourceSpec, watch as watch_sources};

/// Far beyond what any machine needs; reached only when the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

async fn start(folder: &TempDir) -> watch::Receiver<Content> {
    watch_sources(vec![SourceSpec::Folder(folder.path().into())]).await.unwrap()
}

async fn until(content: &mut watch::Receiver<Content>, condition: impl FnMut(&Content) -> bool) -> Content {
    let reached = tokio::time::timeout(PATIENCE, content.wait_for(condition)).await;
    reached.expect("the content changes in time").expect("the source runs").clone()
}

fn names(content: &Content) -> Vec<String> {
    content.objects.services.keys().map(ToString::to_string).collect()
}

fn port(content: &Content) -> u16 {
    content.objects.services.values().next().map_or(0, |service| service.value.spec.ports[0].port)
}

fn service(name: &str, port: u16) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  ports: [{{port: {port}}}]\n")
}

fn write(folder: &TempDir, file: &str, text: &str) {
    let path = folder.path().join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[tokio::test]
async fn what_is_there_at_the_start_is_there_at_once() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 80));
    write(
        &folder,
        "deep/er/b.json",
        "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"b\"},\"spec\":{}}",
    );
    write(&folder, ".hidden.yaml", &service("hidden", 80));
    write(&folder, "notes.txt", "hello");
    write(&folder, "kustomization.yaml", "resources: [a.yaml]\n");
    let content = start(&folder).await;
    assert_eq!(names(&content.borrow()), ["default/a", "default/b"]);
    assert!(content.borrow().errors.is_empty(), "{:?}", content.borrow().errors);
}

#[tokio::test]
async fn edits_new_files_and_deletions_are_followed() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 80));
    let mut content = start(&folder).await;
    write(&folder, "a.yaml", &service("a", 81));
    until(&mut content, |content| port(content) == 81).await;
    write(&folder, "new/b.yaml", &service("b", 80));
    until(&mut content, |content| names(content) == ["default/a", "default/b"]).await;
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    until(&mut content, |content| names(content) == ["default/b"]).await;
    fs::remove_dir_all(folder.path().join("new")).unwrap();
    let content = until(&mut content, |content| names(content).is_empty()).await;
    assert!(content.errors.is_empty());
}

#[tokio::test]
async fn an_edit_is_live_well_under_a_second() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 1));
    let mut content = start(&folder).await;
    let mut fastest = Duration::MAX;
    for number in 2..7 {
        let begun = std::time::Instant::now();
        write(&folder, "a.yaml", &service("a", number));
        until(&mut content, |content| port(content) == number).await;
        fastest = fastest.min(begun.elapsed());
    }
    // The fastest of several, because a busy machine may delay any one of them. A rescan alone takes two seconds.
    assert!(fastest < Duration::from_millis(700), "{fastest:?}");
}

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_content_and_is_reported() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 80));
    let mut content = start(&folder).await;
    write(&folder, "a.yaml", &service("a", 80).replace("port: 80", "port: eighty"));
    let broken = until(&mut content, |content| !content.errors.is_empty()).await;
    let error = &broken.errors[0];
    assert_eq!(error.location.file.as_ref(), folder.path().join("a.yaml"));
    assert_eq!((error.location.line, error.field.as_str()), (5, "spec.ports[0].port"));
    assert_eq!((broken.errors_total, port(&broken)), (1, 80));
    write(&folder, "a.yaml", "kind: [");
    let broken = until(&mut content, |content| content.errors_total == 2).await;
    assert_eq!((broken.errors.len(), port(&broken)), (1, 80));
    write(&folder, "a.yaml", &service("a", 82));
    let healed = until(&mut content, |content| content.errors.is_empty()).await;
    assert_eq!((healed.errors_total, port(&healed)), (2, 82));
}

#[tokio::test]
async fn an_emptied_file_keeps_its_objects() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 80));
    let mut content = start(&folder).await;
    write(&folder, "a.yaml", "");
    let emptied = until(&mut content, |content| !content.errors.is_empty()).await;
    assert_eq!(names(&emptied), ["default/a"]);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn half_of_a_file_is_not_taken_for_the_whole() {
    use std::io::Write;

    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 80));
    let mut content = start(&folder).await;
    let mut file = fs::File::create(folder.path().join("a.yaml")).unwrap();
    file.write_all(service("a", 81).as_bytes()).unwrap();
    // A change of another file shows that the folder was looked at meanwhile.
    write(&folder, "b.yaml", &service("b", 80));
    let meanwhile = until(&mut content, |content| names(content).len() == 2).await;
    assert_eq!(port(&meanwhile), 80);
    assert!(meanwhile.errors.is_empty());
    file.write_all(format!("---\n{}", service("c", 80)).as_bytes()).unwrap();
    drop(file);
    let whole = until(&mut content, |content| port(content) == 81).await;
    assert_eq!(names(&whole), ["default/a", "default/b", "default/c"]);
}

#[tokio::test]
async fn editors_that_replace_the_file_are_followed() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 80));
    let mut content = start(&folder).await;
    for number in [81, 82] {
        write(&folder, ".a.yaml.swp", &service("a", number));
        fs::rename(folder.path().join(".a.yaml.swp"), folder.path().join("a.yaml")).unwrap();
        until(&mut content, |content| port(content) == number).await;
    }
    fs::rename(folder.path().join("a.yaml"), folder.path().join("renamed.yml")).unwrap();
    write(&folder, "b.yaml", &service("b", 80));
    let renamed = until(&mut content, |content| names(content).len() == 2).await;
    assert!(renamed.errors.is_empty(), "{:?}", renamed.errors);
}

#[tokio::test]
async fn two_files_with_the_same_object_are_an_error_that_names_both() {
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write(&folder, "a.yaml", &service("a", 80));
    write(&other, "copy.yaml", &service("a", 81));
    let sources = [&folder, &other].map(|folder| SourceSpec::Folder(folder.path().into()));
    let mut content = watch_sources(sources.to_vec()).await.unwrap();
    {
        let content = content.borrow();
        assert_eq!((port(&content), content.errors.len()), (80, 1));
        let text = content.errors[0].to_string();
        assert!(text.contains("copy.yaml") && text.contains("a.yaml:1"), "{text}");
    }
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    let content = until(&mut content, |content| content.errors.is_empty()).await;
    assert_eq!(port(&content), 81);
}

#[tokio::test]
async fn a_folder_that_goes_away_keeps_its_objects_until_it_is_back() {
    let parent = TempDir::new().unwrap();
    let (path, aside) = (parent.path().join("mesh"), parent.path().join("aside"));
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), service("a", 80)).unwrap();
    let mut content = watch_sources(vec![SourceSpec::Folder(path.clone())]).await.unwrap();
    fs::rename(&path, &aside).unwrap();
    let gone = until(&mut content, |content| !content.errors.is_empty()).await;
    assert_eq!(port(&gone), 80);
    fs::write(aside.join("a.yaml"), service("a", 81)).unwrap();
    fs::rename(&aside, &path).unwrap();
    let back = until(&mut content, |content| content.errors.is_empty()).await;
    assert_eq!(port(&back), 81);
    // The new watch works.
    fs::write(path.join("a.yaml"), service("a", 82)).unwrap();
    until(&mut content, |content| port(content) == 82).await;
}

#[tokio::test]
async fn a_missing_folder_is_an_error_until_it_appears() {
    let parent = TempDir::new().unwrap();
    let path: &Path = &parent.path().join("later");
    let mut content = watch_sources(vec![SourceSpec::Folder(path.into())]).await.unwrap();
    assert_eq!(content.borrow().errors.len(), 1);
    fs::create_dir(path).unwrap();
    fs::write(path.join("a.yaml"), service("a", 80)).unwrap();
    let content = until(&mut content, |content| content.errors.is_empty()).await;
    assert_eq!(names(&content), ["default/a"]);
}
