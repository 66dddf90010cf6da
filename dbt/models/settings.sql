SELECT '{{ var("time_zone") }}' AS time_zone, CAST({{ var("gap_minutes") }} * 60000 AS BIGINT) AS gap_ms,
       CAST({{ var("document_characters") }} AS BIGINT) AS document_characters
