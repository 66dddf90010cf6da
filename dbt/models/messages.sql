{# Written by `./dev docs --write` from imbrace_lake/query/views.py. #}
SELECT m.message_id, m.conversation_id, m.organization_id, m.business_unit_id, m.sender_id, m.role AS sender_role, m.type, m.text, m.content, m.created_at, m.updated_at, m.extra, m.is_deleted, m.deleted_at, m.first_seen_at, m.last_changed_at, m.run_id,
       CAST(coalesce(m.role = 'bot' AND (m.bare LIKE '{{ '{%' }}}' OR m.bare LIKE '[{{ '{%' }}}]' OR m.bare LIKE '["%"]' OR m.bare = '[]'), false) AS BOOLEAN) AS is_machine,
       {{ imbrace_lake.local("m.created_at", "s.time_zone") }} AS local_at
FROM (
    SELECT raw.*, {{ imbrace_lake.bare("raw.text") }} AS bare,
           CASE WHEN substr(raw.sender_id, 1, 4) = 'pub_' OR b.sender_id IS NOT NULL THEN 'bot'
                ELSE raw.sender_role END AS role
    FROM {{ source('lake', 'messages') }} AS raw LEFT JOIN {{ ref('bots') }} AS b ON b.sender_id = raw.sender_id
) AS m
CROSS JOIN {{ ref('settings') }} AS s
